;; Writes a log line of 8 MiB on `x`.
⟨apply⟩
(drop (memory.grow (i32.const 128)))
(call $emit (i32.const 2) (i32.const 0) (i32.const 8388608))
