;; Takes memory without end on every change of members.
⟨apply-conf-change⟩ (call $scribble) (call $hoard)
