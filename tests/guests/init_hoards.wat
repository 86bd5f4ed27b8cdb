;; Takes memory without end in `init`, so its group cannot begin.
⟨init⟩ (call $scribble) (call $hoard)
