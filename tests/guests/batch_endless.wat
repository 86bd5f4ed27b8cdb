;; Answers `apply-batch` with two hundred and fifty million answers.
⟨batch-result⟩ (i32.store (i32.const 2052) (i32.const 250000000))
