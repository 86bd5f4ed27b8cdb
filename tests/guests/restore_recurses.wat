;; Recurses without end in `restore`, so no snapshot can be read back.
⟨restore⟩ (drop (call $deeper (i32.const 0)))
