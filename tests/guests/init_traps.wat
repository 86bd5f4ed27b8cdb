;; Traps in `init`, so its group cannot begin.
⟨init⟩ (call $scribble) unreachable
