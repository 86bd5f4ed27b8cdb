;; Counts on, takes all its memory and answers well, on the query `x`.
⟨query⟩
(call $scribble)
(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
(return (call $pong))
