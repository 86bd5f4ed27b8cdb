;; Traps in `save`, so there is never a snapshot.
⟨save⟩ (call $scribble) unreachable
