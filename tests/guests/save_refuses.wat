;; Writes its snapshot well, and then refuses it.
⟨saved⟩ (return (call $rejected (i32.const 42) (i32.const 1024) (i32.const 7)))
