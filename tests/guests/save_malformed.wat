;; Writes its snapshot well, and answers with what is neither done nor a rejection.
⟨saved⟩
(drop (call $done))
(i32.store8 (i32.const 2048) (i32.const 200))
(return (i32.const 2048))
