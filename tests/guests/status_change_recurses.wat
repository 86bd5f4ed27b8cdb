;; Recurses without end on every change of leader.
⟨process-status-change⟩ (call $scribble) (drop (call $deeper (i32.const 0)))
