;; Has one function of 20,000 additions: long work for a compiler whose passes are not linear.
⟨module⟩ (func (param i64) (result i64) (local.get 0) ⟦20000|(i64.add (local.get 0)) (i64.rotl (i64.const #))⟧)
