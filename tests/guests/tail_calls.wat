;; Calls itself in tail position on `x`: an endless loop without a loop and without a stack.
⟨module⟩ (func $again (param i32) (result i32) (return_call $again (i32.add (local.get 0) (i32.const 1))))
⟨apply⟩ (return (call $again (i32.const 0)))
