;; Wants `wasi:random` with a function of another type than it has.
⟨imports⟩ (import "wasi:random/random@0.2.6" (instance (export "get-random-u64" (func (result string)))))
