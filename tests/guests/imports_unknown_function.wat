;; Wants a function of `wasi:random` that there is not.
⟨imports⟩ (import "wasi:random/random@0.2.6" (instance (export "get-real-random" (func (result u64)))))
