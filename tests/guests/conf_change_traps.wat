;; Traps on every change of members.
⟨apply-conf-change⟩ (call $scribble) unreachable
