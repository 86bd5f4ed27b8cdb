;; Takes memory without end in `apply-batch`, whatever the commands: they are run one by one instead.
⟨apply-batch⟩ (call $scribble) (call $hoard)
