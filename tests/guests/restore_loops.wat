;; Loops for ever in `restore`, so no snapshot can be read back.
⟨restore⟩ (loop $l (br $l))
