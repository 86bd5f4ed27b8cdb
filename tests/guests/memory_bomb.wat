;; Declares a memory of four gibibytes.
⟨module⟩ (memory $bomb 65536)
