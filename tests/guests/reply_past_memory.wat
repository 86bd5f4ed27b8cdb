;; Replies with bytes that begin in its memory and end far outside it, on `x`.
⟨apply⟩ (return (call $ok (i32.const 16) (i32.const -32)))
