;; Writes across the end of its memory on `x`: the bytes before the end must not change either, or a trace would stay.
⟨apply⟩ (i64.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i64.const -1))
