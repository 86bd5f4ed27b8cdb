;; Does not give back the source that it was lent.
⟨restore⟩
(call $read (local.get $source) (i32.const 8) (i32.const 3072))
(global.set $counter (i64.load (i32.load (i32.const 3072))))
(return (call $done))
