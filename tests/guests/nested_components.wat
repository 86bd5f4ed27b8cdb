;; Holds a component that holds a component, and so on, 10,000 deep.
⟨nested⟩ 10000
