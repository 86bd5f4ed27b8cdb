;; Does not give back the sink that it was lent.
⟨save⟩
(call $write (local.get $sink) (i32.const 3072) (i32.const 8))
(return (call $done))
