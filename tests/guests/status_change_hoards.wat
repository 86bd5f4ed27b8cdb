;; Takes memory without end on every change of leader.
⟨process-status-change⟩ (call $scribble) (call $hoard)
