;; Traps on every change of leader.
⟨process-status-change⟩ (call $scribble) unreachable
