;; Rejects on `x` and keeps what it has written to its state, which a rejection must not: the host cannot know, and it is the same
;; on every replica.
⟨apply⟩ (return (call $rejected (i32.const 7) (i32.const 1024) (i32.const 7)))
