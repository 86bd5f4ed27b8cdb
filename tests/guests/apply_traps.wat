;; Traps on the command `x`.
⟨apply⟩ unreachable
