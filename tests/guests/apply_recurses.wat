;; Recurses without end on the command `x`.
⟨apply⟩ (drop (call $deeper (i32.const 0)))
