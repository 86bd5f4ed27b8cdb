;; Has a name that is not UTF-8.
⟨describe⟩ (i32.store (i32.const 2048) (i32.const 1051)) (i32.store (i32.const 2052) (i32.const 2))
