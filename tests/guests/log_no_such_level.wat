;; Writes a log line of a level that there is not, on `x`.
⟨apply⟩ (call $emit (i32.const 77) (i32.const 1024) (i32.const 7))
