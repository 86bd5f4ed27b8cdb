;; Takes memory without end when it is asked what it is.
⟨describe⟩ (call $hoard)
