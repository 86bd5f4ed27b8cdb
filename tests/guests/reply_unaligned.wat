;; Returns a result at an odd address, on `x`.
⟨apply⟩ (return (i32.const 2049))
