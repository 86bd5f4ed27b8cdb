;; Grows a table to its limit on `x` and answers how far it came; a later `x` gets nothing. How large it is, is state outside
;; `save`, and so is gone with the next barrier, on all replicas alike.
⟨module⟩ (table $bomb 1 funcref)
⟨apply⟩
(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $bomb (ref.null func) (i32.const 1000)))))
(call $unscribble)
(return (call $number (i64.extend_i32_u (table.size $bomb))))
