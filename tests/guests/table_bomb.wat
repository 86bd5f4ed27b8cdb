;; Declares a table of a hundred million elements.
⟨module⟩ (table $bomb 100000000 funcref)
