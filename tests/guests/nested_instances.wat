;; Holds 10,000 instances of a core module.
⟨component⟩
(core module $Small (func (export "f")))
⟦10000|(core instance (instantiate $Small))⟧
