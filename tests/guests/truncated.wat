;; Ends a hundred bytes early.
⟨cut⟩ 100
