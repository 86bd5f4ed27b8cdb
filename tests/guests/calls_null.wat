;; Calls through an empty slot of a table on `x`.
⟨module⟩
(table $empty 4 funcref)
(type $nothing (func))
⟨apply⟩ (call_indirect $empty (type $nothing) (i32.const 2))
