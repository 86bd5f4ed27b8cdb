;; Has a custom section of 100 MiB.
⟨custom-section⟩ 104857600
