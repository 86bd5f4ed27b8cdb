;; Wants a function of no interface.
⟨imports⟩ (import "run" (func))
