;; Calls a function as if it had another type on `x`.
⟨module⟩
(table $one funcref (elem $pong))
(type $other (func (param i64)))
⟨apply⟩ (call_indirect $one (type $other) (i64.const 0) (i32.const 0))
