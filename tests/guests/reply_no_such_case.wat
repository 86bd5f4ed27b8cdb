;; Replies with neither a reply nor a rejection, but with case 9, on `x`.
⟨apply⟩
(drop (call $done))
(i32.store8 (i32.const 2048) (i32.const 9))
(return (i32.const 2048))
