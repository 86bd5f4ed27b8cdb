;; Loops for ever in `save`, so there is never a snapshot.
⟨save⟩ (call $scribble) (loop $l (br $l))
