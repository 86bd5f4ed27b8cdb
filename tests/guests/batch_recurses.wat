;; Recurses without end in `apply-batch`, whatever the commands: they are run one by one instead.
⟨apply-batch⟩ (call $scribble) (drop (call $deeper (i32.const 0)))
