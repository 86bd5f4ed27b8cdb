;; Instantiates a component ten times, which instantiates another ten times, and so on, nine deep: less than a kilobyte that
;; asks for a hundred million instances.
⟨component⟩
(component $c0 (core module $m) (core instance (instantiate $m)))
(component $c1 (alias outer 1 $c0 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c2 (alias outer 1 $c1 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c3 (alias outer 1 $c2 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c4 (alias outer 1 $c3 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c5 (alias outer 1 $c4 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c6 (alias outer 1 $c5 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c7 (alias outer 1 $c6 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(component $c8 (alias outer 1 $c7 (component $c)) ⟦10|(instance (instantiate $c))⟧)
(instance (instantiate $c8))
