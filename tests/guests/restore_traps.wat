;; Traps in `restore`, so no snapshot can be read back.
⟨restore⟩ unreachable
