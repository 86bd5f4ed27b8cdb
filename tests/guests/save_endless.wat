;; Writes a snapshot that never ends.
⟨save⟩ (loop $l (call $write (local.get $sink) (i32.const 0) (i32.const 65536)) (br $l))
