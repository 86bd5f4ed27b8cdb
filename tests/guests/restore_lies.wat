;; Restores a state that was not saved: a thousand more.
⟨restored⟩ (call $scribble)
