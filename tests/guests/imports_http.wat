;; Wants the network: `wasi:http`.
⟨imports⟩ (import "wasi:http/outgoing-handler@0.2.6" (instance))
