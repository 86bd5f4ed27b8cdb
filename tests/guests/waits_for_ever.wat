;; Waits until the end of time on `x`.
⟨imports⟩
(import "wasi:io/poll@0.2.6" (instance $poll
  (export "pollable" (type $pollable (sub resource)))
  (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
  (alias outer 1 $pollable (type $pollable'))
  (export "pollable" (type $pollable (eq $pollable')))
  (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
⟨lowered⟩
(core func $block (canon lower (func $poll "[method]pollable.block")))
(core func $subscribe (canon lower (func $clock "subscribe-duration")))
⟨module-imports⟩
(import "host" "block" (func $block (param i32)))
(import "host" "subscribe" (func $subscribe (param i64) (result i32)))
⟨with⟩
(export "block" (func $block))
(export "subscribe" (func $subscribe))
⟨apply⟩ (call $block (call $subscribe (i64.const -1)))
