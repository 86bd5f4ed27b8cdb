;; Asks for four gibibytes of entropy on `x`.
⟨apply⟩ (call $fill (i32.const -1) (i32.const 3072))
