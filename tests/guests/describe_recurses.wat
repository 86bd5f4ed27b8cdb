;; Recurses without end when it is asked what it is.
⟨describe⟩ (drop (call $deeper (i32.const 0)))
