;; Loops for ever in `init`, so its group cannot begin.
⟨init⟩ (call $scribble) (loop $l (br $l))
