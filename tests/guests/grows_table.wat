;; Grows a table until it is refused, and traps, on `x`.
⟨module⟩ (table $bomb 1 funcref)
⟨apply⟩
(loop $more (br_if $more (i32.ne (i32.const -1) (table.grow $bomb (ref.null func) (i32.const 1000)))))
unreachable
