;; Takes memory without end on the command `x`.
⟨apply⟩ (call $hoard)
