;; Replies well on `x`, and traps when the host gives the memory of the reply back. What it answers to `apply-batch` it lets go.
⟨module⟩
(global $attacked (mut i32) (i32.const 0))
(func (export "post-apply") (param i32) (if (global.get $attacked) (then unreachable)))
⟨apply⟩
(global.set $attacked (i32.const 1))
(call $unscribble)
(return (call $pong))
⟨apply-options⟩ (post-return (core func $main "post-apply"))
⟨batch-result⟩ (global.set $attacked (i32.const 0))
