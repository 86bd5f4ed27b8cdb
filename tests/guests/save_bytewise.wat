;; Writes a snapshot that never ends, one byte at a time: the host must not pay more for each than the guest.
⟨save⟩ (loop $l (call $write (local.get $sink) (i32.const 0) (i32.const 1)) (br $l))
