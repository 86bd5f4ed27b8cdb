;; A parent that calls a component inside it on the command `x`, which the component model forbids at the time of the call.
⟨lowered⟩
  (component $Child
    (core module $M (func (export "f") (param i32) (result i32) (local.get 0)))
    (core instance $m (instantiate $M))
    (func (export "f") (param "n" u32) (result u32) (canon lift (core func $m "f"))))
  (instance $child (instantiate $Child))
  (core func $child (canon lower (func $child "f")))
⟨module-imports⟩ (import "host" "child" (func $child (param i32) (result i32)))
⟨with⟩ (export "child" (func $child))
⟨apply⟩ (drop (call $child (i32.const 0)))
⟨query⟩ (drop (call $child (i32.const 0)))
