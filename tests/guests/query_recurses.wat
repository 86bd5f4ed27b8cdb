;; Recurses without end on the query `x`.
⟨query⟩ (drop (call $deeper (i32.const 0)))
