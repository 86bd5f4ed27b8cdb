;; Wants WASI 0.3, whose functions are asynchronous.
⟨imports⟩ (import "wasi:clocks/monotonic-clock@0.3.0" (instance))
