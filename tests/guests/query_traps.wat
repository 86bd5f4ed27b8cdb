;; Traps on the query `x`.
⟨query⟩ unreachable
