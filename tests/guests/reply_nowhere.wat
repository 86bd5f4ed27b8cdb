;; Returns a result that lies outside its memory, on `x`.
⟨apply⟩ (return (i32.const -16))
