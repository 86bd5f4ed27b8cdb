;; Writes to a sink that it was not lent, on `x`.
⟨apply⟩ (call $write (i32.const 1) (i32.const 0) (i32.const 8))
