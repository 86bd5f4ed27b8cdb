;; Takes memory without end on the query `x`.
⟨query⟩ (call $hoard)
