;; Loops for ever on the query `x`.
⟨query⟩ (loop $l (br $l))
