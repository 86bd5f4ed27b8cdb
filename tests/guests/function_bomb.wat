;; Has 65,537 functions: more than a compiler is given.
⟨module⟩ ⟦65537|(func)⟧
