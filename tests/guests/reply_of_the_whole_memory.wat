;; Replies with its whole memory on `x`.
⟨apply⟩
(drop (memory.grow (i32.const 64)))
(return (call $ok (i32.const 0) (i32.mul (memory.size) (i32.const 65536))))
