;; Answers one command less than it was asked, in `apply-batch`: they are run one by one instead.
⟨batch-result⟩ (i32.store (i32.const 2052) (i32.sub (local.get $len) (i32.const 1)))
