;; Fills a mebibyte with one instruction, for ever, on `x`: fuel must count the bytes and not the instruction.
⟨apply⟩
(drop (memory.grow (i32.const 16)))
(loop $l (memory.fill (i32.const 65536) (i32.const 7) (i32.const 1048576)) (br $l))
