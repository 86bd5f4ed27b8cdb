;; Recurses without end in `save`, so there is never a snapshot.
⟨save⟩ (call $scribble) (drop (call $deeper (i32.const 0)))
