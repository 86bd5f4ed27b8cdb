;; Has a name of 16 MiB.
⟨describe⟩
(drop (memory.grow (i32.const 256)))
(i32.store (i32.const 2048) (i32.const 4096)) (i32.store (i32.const 2052) (i32.const 16777216))
