;; Recurses without end in `init`, so its group cannot begin.
⟨init⟩ (call $scribble) (drop (call $deeper (i32.const 0)))
