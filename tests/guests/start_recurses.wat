;; Recurses without end when it is instantiated, so before it can say what it is.
⟨start⟩ (drop (call $deeper (i32.const 0)))
