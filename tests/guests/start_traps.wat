;; Traps when it is instantiated, so before it can say what it is.
⟨start⟩ unreachable
