;; Takes memory without end in `save`, so there is never a snapshot.
⟨save⟩ (call $scribble) (call $hoard)
