;; Recurses without end through sixty core modules on the command `x`: each of them alone stays within its depth, all
;; together would end the native stack. In an order that a query can start too.
⟨lowered⟩
  (core module $Ring (table (export "ring") 60 funcref))
  (core instance $ring (instantiate $Ring))
  ⟦60|(core module $Round#
    (type $f (func (param i32) (result i32)))
    (import "ring" "ring" (table 60 funcref))
    (elem (i32.const #) $round)
    (func $round (export "round") (type $f)
      (i32.add (i32.const 1)
        (call_indirect (type $f) (i32.add (local.get 0) (i32.const 1))
          (i32.rem_u (i32.add (i32.const #) (i32.const 1)) (i32.const 60))))))
  (core instance $round# (instantiate $Round# (with "ring" (instance $ring))))⟧
⟨module-imports⟩ (import "host" "round" (func $round (param i32) (result i32)))
⟨with⟩ (export "round" (func $round0 "round"))
⟨apply⟩ (drop (call $round (i32.const 0)))
⟨query⟩ (drop (call $round (i32.const 0)))
