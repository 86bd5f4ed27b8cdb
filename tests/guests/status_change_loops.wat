;; Loops for ever on every change of leader.
⟨process-status-change⟩ (call $scribble) (loop $l (br $l))
