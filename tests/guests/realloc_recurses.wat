;; Recurses without end where the host asks for memory for a request of twelve bytes or more.
⟨realloc⟩ (call $scribble) (drop (call $deeper (i32.const 0)))
