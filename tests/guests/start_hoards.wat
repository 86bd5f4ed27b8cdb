;; Takes memory without end when it is instantiated, so before it can say what it is.
⟨start⟩ (call $hoard)
