;; Refuses every snapshot.
⟨restored⟩ (return (call $rejected (i32.const 42) (i32.const 1024) (i32.const 7)))
