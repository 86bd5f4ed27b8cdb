;; Asks for four gibibytes of a snapshot of eight bytes, and for more behind its end.
⟨restore⟩
(call $read (local.get $source) (i32.const -1) (i32.const 3072))
(global.set $counter (i64.load (i32.load (i32.const 3072))))
(call $read (local.get $source) (i32.const -1) (i32.const 3072))
(if (i32.load (i32.const 3076)) (then unreachable))
(call $drop-source (local.get $source))
(return (call $done))
