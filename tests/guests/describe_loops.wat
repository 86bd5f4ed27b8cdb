;; Loops for ever when it is asked what it is.
⟨describe⟩ (loop $l (br $l))
