;; Has a name that clears the screen, retitles the terminal and forges a line.
⟨describe⟩ (i32.store (i32.const 2048) (i32.const 1053)) (i32.store (i32.const 2052) (i32.const 22))
