;; Asks for entropy for ever on `x`, 64 KiB at a time.
⟨apply⟩ (loop $l (call $fill (i32.const 65536) (i32.const 3072)) (call $reset) (br $l))
