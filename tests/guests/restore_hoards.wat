;; Takes memory without end in `restore`, so no snapshot can be read back.
⟨restore⟩ (call $hoard)
