;; Traps where the host asks for memory for a request of twelve bytes or more.
⟨realloc⟩ (call $scribble) unreachable
