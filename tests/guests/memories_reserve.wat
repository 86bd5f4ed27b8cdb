;; Has sixteen memories, as many as may be, each of which would reserve gigabytes of addresses if it were compiled like one
;; alone. They grow and are written to on the command `x`, and then it fails.
⟨module⟩
  ⟦15|(memory $m# 0)⟧
  (func $use-all
    ⟦15|(drop (memory.grow $m# (i32.const 1)))
    (i32.store $m# (i32.const 65532) (i32.const #))⟧
    ;; One byte too far is one byte too far.
    (i32.store $m14 (i32.const 65533) (i32.const 1)))
⟨apply⟩ (call $use-all)
