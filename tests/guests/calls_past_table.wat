;; Calls through a slot that the table does not have on `x`.
⟨module⟩
(table $four 4 funcref)
(type $nothing (func))
⟨apply⟩ (call_indirect $four (type $nothing) (i32.const 77))
