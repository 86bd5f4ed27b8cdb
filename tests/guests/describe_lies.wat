;; Describes itself otherwise each time: with the schema of the day.
⟨describe⟩ (i32.store (i32.const 2064) (i32.wrap_i64 (i64.or (call $next-u64) (i64.const 1))))
