;; Gives the host memory that it does not have.
⟨realloc-result⟩ (return (i32.const -64))
