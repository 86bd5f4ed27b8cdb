;; Wants an interface of a namespace that nobody here knows.
⟨imports⟩ (import "acme:shop/cart@1.2.3" (instance))
