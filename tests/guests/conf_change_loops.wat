;; Loops for ever on every change of members.
⟨apply-conf-change⟩ (call $scribble) (loop $l (br $l))
