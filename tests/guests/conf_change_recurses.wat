;; Recurses without end on every change of members.
⟨apply-conf-change⟩ (call $scribble) (drop (call $deeper (i32.const 0)))
