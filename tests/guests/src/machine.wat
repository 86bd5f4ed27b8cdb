;; A counter that behaves, in a component of three kilobytes: what the attacks beside it (`*.wat`) have in common. Each
;; of them fills some of the places in ⟨⟩ and leaves the others empty; `tests/src/guests/text.rs` puts them together.
;;
;; It answers `add`, `get` and `ping` as the guests in Rust do (`lib.rs`), and goes by the first letter alone. A request
;; that begins with `x` is the attack; one of twelve bytes or more meets the attack on the allocator.
;;
;; Memory: texts at 1024, results at 2048, the number being answered before 3072; the allocator begins at 4096, and again
;; with each call.
(component
  ⟨custom⟩
  (import "skep:machine/types@0.1.0" (instance $types
    (type $context' (record (field "index" u64) (field "term" u64) (field "now" u64)))
    (export "context" (type $context (eq $context')))
    (type $rejection' (record (field "code" u32) (field "message" string)))
    (export "rejection" (type $rejection (eq $rejection')))
    (type $kind' (enum "add-voter" "add-learner" "promote" "remove"))
    (export "change-kind" (type $kind (eq $kind')))
    (type $change' (record (field "kind" $kind) (field "node" u64) (field "data" (list u8))))
    (export "conf-change" (type $change (eq $change')))
    (type $leader' (record (field "old" u64) (field "new" u64) (field "term" u64)))
    (export "leader-changed" (type $leader (eq $leader')))
    (type $status' (variant (case "leader-changed" $leader)))
    (export "status-change" (type $status (eq $status')))
    (type $descriptor' (record
      (field "name" string) (field "version" string) (field "schema" u32) (field "oldest-schema" u32)))
    (export "descriptor" (type $descriptor (eq $descriptor')))))
  (alias export $types "context" (type $context))
  (alias export $types "rejection" (type $rejection))
  (alias export $types "conf-change" (type $change))
  (alias export $types "status-change" (type $status))
  (alias export $types "descriptor" (type $descriptor))

  (import "skep:machine/snapshot-io@0.1.0" (instance $io
    (export "sink" (type $sink (sub resource)))
    (export "source" (type $source (sub resource)))
    (export "[method]sink.write" (func (param "self" (borrow $sink)) (param "chunk" (list u8))))
    (export "[method]source.read" (func (param "self" (borrow $source)) (param "len" u32) (result (list u8))))))
  (alias export $io "sink" (type $sink))
  (alias export $io "source" (type $source))
  (import "skep:machine/entropy@0.1.0" (instance $entropy
    (export "fill" (func (param "len" u32) (result (list u8))))
    (export "next-u64" (func (result u64)))))
  (import "skep:machine/log@0.1.0" (instance $log
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (export "emit" (func (param "level" $level) (param "message" string)))))
  ⟨imports⟩

  (core module $Memory
    (memory (export "memory") 1)
    ;; 0: what the allocator does on its way, of the type () → (); put in by the main module.
    (table (export "table") 1 funcref)
    (type $hook (func))
    (global $next (mut i32) (i32.const 4096))
    (func (export "reset") (global.set $next (i32.const 4096)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (if (i32.ge_u (local.get 3) (i32.const 12)) (then
        (call_indirect (type $hook) (i32.const 0))
        ⟨realloc-result⟩))
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (if (i32.gt_u (global.get $next) (i32.mul (memory.size) (i32.const 65536)))
        (then (if (i32.eq (i32.const -1)
            (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536)))))
          (then unreachable))))
      (local.get $at)))
  (core instance $memory (instantiate $Memory))

  (core func $write (canon lower (func $io "[method]sink.write") (memory (core memory $memory "memory"))))
  (core func $read (canon lower (func $io "[method]source.read")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core func $drop-sink (canon resource.drop $sink))
  (core func $drop-source (canon resource.drop $source))
  (core func $emit (canon lower (func $log "emit") (memory (core memory $memory "memory"))))
  (core func $fill (canon lower (func $entropy "fill")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core func $next-u64 (canon lower (func $entropy "next-u64")))
  ⟨lowered⟩

  (core module $Main
    (import "host" "memory" (memory 1))
    (import "host" "table" (table 1 funcref))
    (import "host" "reset" (func $reset))
    (import "host" "write" (func $write (param i32 i32 i32)))
    (import "host" "read" (func $read (param i32 i32 i32)))
    (import "host" "drop-sink" (func $drop-sink (param i32)))
    (import "host" "drop-source" (func $drop-source (param i32)))
    (import "host" "emit" (func $emit (param i32 i32 i32)))
    (import "host" "fill" (func $fill (param i32 i32)))
    (import "host" "next-u64" (func $next-u64 (result i64)))
    ⟨module-imports⟩

    (global $counter (mut i64) (i64.const 0))
    (elem (table 0) (i32.const 0) func $allocating)
    (func $allocating ⟨realloc⟩)
    (data (i32.const 1024) "hostile" "1" "pong" "unknown request" "\ff\fe" "\1b[2J\1b]0;owned\07\0d\0aforged")
    ⟨module⟩

    ;; What attacks have in common.

    ;; Takes memory until it is refused, touching every page, and trips over the refusal.
    (func $hoard
      (loop $more
        (i32.store (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)) (i32.const 1))
        (br $more)))
    ;; Does not end, and is no tail call.
    (func $deeper (param i32) (result i32)
      (i32.add (i32.const 1) (call $deeper (i32.add (local.get 0) (i32.const 1)))))
    ;; Leaves a trace in the state, which must not outlive a call that fails.
    (func $scribble (global.set $counter (i64.add (global.get $counter) (i64.const 1000))))
    (func $unscribble (global.set $counter (i64.sub (global.get $counter) (i64.const 1000))))

    ;; What all answer with.

    (func $ok (param $at i32) (param $len i32) (result i32)
      (call $reset)
      (i32.store8 (i32.const 2048) (i32.const 0))
      (i32.store (i32.const 2052) (local.get $at))
      (i32.store (i32.const 2056) (local.get $len))
      (i32.const 2048))
    (func $rejected (param $code i32) (param $at i32) (param $len i32) (result i32)
      (call $reset)
      (i32.store8 (i32.const 2048) (i32.const 1))
      (i32.store (i32.const 2052) (local.get $code))
      (i32.store (i32.const 2056) (local.get $at))
      (i32.store (i32.const 2060) (local.get $len))
      (i32.const 2048))
    (func $done (result i32) (call $ok (i32.const 0) (i32.const 0)))
    ;; In decimal.
    (func $number (param $rest i64) (result i32) (local $at i32)
      (local.set $at (i32.const 3072))
      (loop $digit
        (local.set $at (i32.sub (local.get $at) (i32.const 1)))
        (i32.store8 (local.get $at) (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $rest) (i64.const 10)))))
        (br_if $digit (i64.ne (i64.const 0) (local.tee $rest (i64.div_u (local.get $rest) (i64.const 10))))))
      (call $ok (local.get $at) (i32.sub (i32.const 3072) (local.get $at))))
    (func $pong (result i32) (call $ok (i32.const 1032) (i32.const 4)))
    (func $verb (param $at i32) (param $len i32) (result i32)
      (if (result i32) (local.get $len) (then (i32.load8_u (local.get $at))) (else (i32.const 0))))

    (func (export "describe") (result i32)
      (i32.store (i32.const 2048) (i32.const 1024)) (i32.store (i32.const 2052) (i32.const 7))
      (i32.store (i32.const 2056) (i32.const 1031)) (i32.store (i32.const 2060) (i32.const 1))
      (i32.store (i32.const 2064) (i32.const 1)) (i32.store (i32.const 2068) (i32.const 1))
      ⟨describe⟩
      (i32.const 2048))

    (func (export "init") (param i64 i64 i64) (param $at i32) (param $len i32) (result i32)
      ⟨init⟩
      (call $done))

    (func $apply (export "apply") (param $index i64) (param $term i64) (param $now i64) (param $at i32) (param $len i32)
        (result i32)
      (local $verb i32)
      (local.set $verb (call $verb (local.get $at) (local.get $len)))
      (if (i32.eq (local.get $verb) (i32.const 97)) (then ;; a
        (global.set $counter (i64.add (global.get $counter) (i64.const 1)))
        (return (call $number (global.get $counter)))))
      (if (i32.eq (local.get $verb) (i32.const 103)) (then (return (call $number (global.get $counter))))) ;; g
      (if (i32.eq (local.get $verb) (i32.const 112)) (then (return (call $pong)))) ;; p
      (if (i32.eq (local.get $verb) (i32.const 120)) (then ;; x
        (call $scribble)
        ⟨apply⟩
        (call $unscribble)))
      (call $rejected (i32.const 400) (i32.const 1036) (i32.const 15)))

    (func (export "query") (param $index i64) (param i64 i64) (param $at i32) (param $len i32) (result i32)
      (local $verb i32)
      (local.set $verb (call $verb (local.get $at) (local.get $len)))
      (if (i32.eq (local.get $verb) (i32.const 103)) (then (return (call $number (global.get $counter)))))
      (if (i32.eq (local.get $verb) (i32.const 112)) (then (return (call $pong))))
      (if (i32.eq (local.get $verb) (i32.const 120)) (then (call $scribble) ⟨query⟩))
      (call $rejected (i32.const 400) (i32.const 1036) (i32.const 15)))

    ;; Each answer is copied, since `apply` writes all of them to the same place.
    (func (export "apply-batch") (param $index i64) (param $term i64) (param $now i64) (param $at i32) (param $len i32)
        (result i32)
      (local $i i32) (local $request i32) (local $to i32) (local $text i32) (local $answers i32)
      ⟨apply-batch⟩
      ;; Above all that the requests can be: 256 commands of a few bytes.
      (local.set $answers (i32.const 32768))
      (local.set $text (i32.const 49152))
      (block $all (loop $next
        (br_if $all (i32.ge_u (local.get $i) (local.get $len)))
        (local.set $request (i32.add (local.get $at) (i32.mul (local.get $i) (i32.const 8))))
        (local.set $to (i32.add (local.get $answers) (i32.mul (local.get $i) (i32.const 16))))
        (memory.copy (local.get $to)
          (call $apply (local.get $index) (local.get $term) (local.get $now)
            (i32.load (local.get $request)) (i32.load offset=4 (local.get $request)))
          (i32.const 16))
        (if (i32.eqz (i32.load8_u (local.get $to))) (then
          (memory.copy (local.get $text) (i32.load offset=4 (local.get $to)) (i32.load offset=8 (local.get $to)))
          (i32.store offset=4 (local.get $to) (local.get $text))
          (local.set $text (i32.add (local.get $text) (i32.load offset=8 (local.get $to))))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
      (i32.store (i32.const 2048) (local.get $answers))
      (i32.store (i32.const 2052) (local.get $len))
      ⟨batch-result⟩
      (i32.const 2048))

    (func (export "save") (param $sink i32) (result i32)
      ⟨save⟩
      (i64.store (i32.const 3072) (global.get $counter))
      (call $write (local.get $sink) (i32.const 3072) (i32.const 8))
      (call $drop-sink (local.get $sink))
      ⟨saved⟩
      (call $done))

    (func (export "restore") (param $schema i32) (param $source i32) (result i32)
      ⟨restore⟩
      (call $read (local.get $source) (i32.const 8) (i32.const 3072))
      (call $drop-source (local.get $source))
      (if (i32.ne (i32.load (i32.const 3076)) (i32.const 8)) (then
        (return (call $rejected (i32.const 7) (i32.const 1024) (i32.const 7)))))
      (global.set $counter (i64.load (i32.load (i32.const 3072))))
      ⟨restored⟩
      (call $done))

    (func (export "apply-conf-change") (param i64 i64 i64) (param $kind i32) (param $node i64) (param i32 i32)
        (result i32)
      ⟨apply-conf-change⟩
      (call $done))

    (func (export "process-status-change") (param i64 i64 i64) (param i32) (param $old i64) (param $new i64) (param i64)
      ⟨process-status-change⟩
      (call $reset))

    (func $start ⟨start⟩)
    (start $start))

  (core instance $main (instantiate $Main (with "host" (instance
    (export "memory" (memory $memory "memory"))
    (export "table" (table $memory "table"))
    (export "reset" (func $memory "reset"))
    (export "write" (func $write))
    (export "read" (func $read))
    (export "drop-sink" (func $drop-sink))
    (export "drop-source" (func $drop-source))
    (export "emit" (func $emit))
    (export "fill" (func $fill))
    (export "next-u64" (func $next-u64))
    ⟨with⟩))))

  (func $describe (result $descriptor) (canon lift (core func $main "describe") (memory (core memory $memory "memory"))))
  (func $apply (param "ctx" $context) (param "request" (list u8)) (result (result (list u8) (error $rejection)))
    (canon lift (core func $main "apply")
      (memory (core memory $memory "memory")) (realloc (core func $memory "realloc")) ⟨apply-options⟩))
  (func $save (param "to" (borrow $sink)) (result (result (error $rejection)))
    (canon lift (core func $main "save") (memory (core memory $memory "memory"))))
  (func $restore (param "schema" u32) (param "src" (borrow $source)) (result (result (error $rejection)))
    (canon lift (core func $main "restore") (memory (core memory $memory "memory"))))
  (func $apply-conf-change (param "ctx" $context) (param "change" $change) (result (result (error $rejection)))
    (canon lift (core func $main "apply-conf-change")
      (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (func $process-status-change (param "ctx" $context) (param "event" $status)
    (canon lift (core func $main "process-status-change")))
  (func $init (param "ctx" $context) (param "config" (list u8)) (result (result (error $rejection)))
    (canon lift (core func $main "init")
      (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (func $query (param "ctx" $context) (param "request" (list u8)) (result (result (list u8) (error $rejection)))
    (canon lift (core func $main "query")
      (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (func $apply-batch (param "ctx" $context) (param "requests" (list (list u8)))
      (result (list (result (list u8) (error $rejection))))
    (canon lift (core func $main "apply-batch")
      (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))

  (instance $state-machine
    (export "describe" (func $describe))
    (export "apply" (func $apply))
    (export "save" (func $save))
    (export "restore" (func $restore))
    (export "apply-conf-change" (func $apply-conf-change))
    (export "process-status-change" (func $process-status-change)))
  (export "skep:machine/state-machine@0.1.0" (instance $state-machine))
  (instance $initializer (export "init" (func $init)))
  (export "skep:machine/initializer@0.1.0" (instance $initializer))
  (instance $queries (export "query" (func $query)))
  (export "skep:machine/queries@0.1.0" (instance $queries))
  (instance $batch (export "apply-batch" (func $apply-batch)))
  (export "skep:machine/batch@0.1.0" (instance $batch))
  ⟨component⟩)
