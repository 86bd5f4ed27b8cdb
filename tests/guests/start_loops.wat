;; Loops for ever when it is instantiated, so before it can say what it is.
⟨start⟩ (loop $l (br $l))
