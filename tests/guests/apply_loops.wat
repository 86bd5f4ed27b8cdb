;; Loops for ever on the command `x`.
⟨apply⟩ (loop $l (br $l))
