;; Reads past the end of its memory on `x`.
⟨apply⟩ (return (i32.load (i32.const -4)))
