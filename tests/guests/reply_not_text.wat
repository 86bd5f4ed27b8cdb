;; Rejects with a message that is not UTF-8, on `x`.
⟨apply⟩ (return (call $rejected (i32.const 1) (i32.const 1051) (i32.const 2)))
