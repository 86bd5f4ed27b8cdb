;; Declares sixteen memories of 64 MiB each: every one is small, together they are not.
⟨module⟩ ⟦16|(memory $bomb# 1024)⟧
