;; Wants a store outside the group: `wasi:keyvalue`.
⟨imports⟩ (import "wasi:keyvalue/store@0.2.0" (instance))
