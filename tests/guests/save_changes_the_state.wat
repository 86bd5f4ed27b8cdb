;; Counts on while it saves, after it has written: an instance that has saved must never be used again.
⟨saved⟩ (call $scribble)
