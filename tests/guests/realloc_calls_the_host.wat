;; Calls an import while the host is moving a request into its memory, which the component model forbids.
⟨realloc⟩ (call $scribble) (drop (call $next-u64))
