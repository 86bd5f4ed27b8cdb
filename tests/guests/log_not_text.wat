;; Writes a log line that is not UTF-8 on `x`.
⟨apply⟩ (call $emit (i32.const 2) (i32.const 1051) (i32.const 2))
