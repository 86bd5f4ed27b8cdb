;; A machine with a mistake for every first letter of a command, and a counter that must survive them all.
;; The parts in ⟨⟩ are put in by `tests/guest.rs`.
(component
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
  (import "skep:machine/entropy@0.1.0" (instance $entropy (export "next-u64" (func (result u64)))))
  (import "skep:machine/log@0.1.0" (instance $log
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (export "emit" (func (param "level" $level) (param "message" string)))))
  (import "wasi:cli/exit@0.2.6" (instance $exit (export "exit" (func (param "status" (result))))))
  (import "wasi:cli/environment@0.2.0" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))))
  (import "wasi:io/poll@0.2.6" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
    (alias outer 1 $pollable (type $pollable'))
    (export "pollable" (type $pollable (eq $pollable')))
    (export "now" (func (result u64)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
  (import "wasi:clocks/wall-clock@0.2.6" (instance $wall
    (type $datetime' (record (field "seconds" u64) (field "nanoseconds" u32)))
    (export "datetime" (type $datetime (eq $datetime')))
    (export "now" (func (result $datetime)))))
  (import "wasi:random/random@0.2.6" (instance $random (export "get-random-u64" (func (result u64)))))
  (import "wasi:random/insecure-seed@0.2.6" (instance $seed
    (export "insecure-seed" (func (result (tuple u64 u64))))))
  (import "wasi:sockets/network@0.2.6" (instance $network
    (type $error' (enum "unknown" "access-denied"))
    (export "error-code" (type $error (eq $error')))))
  (alias export $network "error-code" (type $error-code))
  (import "wasi:sockets/udp-create-socket@0.2.6" (instance $sockets
    (export "create" (func (result (result (error $error-code)))))))

  ;; Memory and an allocator that only goes forward; each call of the machine starts it again, so that nothing of the
  ;; host's arguments stays.
  (core module $Memory
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 4096))
    (func (export "reset") (global.set $next (i32.const 4096)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
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
  (core func $entropy (canon lower (func $entropy "next-u64")))
  (core func $exit (canon lower (func $exit "exit")))
  (core func $environment (canon lower (func $environment "get-environment")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $drop-pollable (canon resource.drop $pollable))
  (core func $now (canon lower (func $clock "now")))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $wall (canon lower (func $wall "now") (memory (core memory $memory "memory"))))
  (core func $random (canon lower (func $random "get-random-u64")))
  (core func $seed (canon lower (func $seed "insecure-seed") (memory (core memory $memory "memory"))))
  (core func $socket (canon lower (func $sockets "create") (memory (core memory $memory "memory"))))

  (core module $Main
    (import "host" "memory" (memory 1))
    (import "host" "reset" (func $reset))
    (import "host" "write" (func $write (param i32 i32 i32)))
    (import "host" "read" (func $read (param i32 i32 i32)))
    (import "host" "drop-sink" (func $drop-sink (param i32)))
    (import "host" "drop-source" (func $drop-source (param i32)))
    (import "host" "emit" (func $emit (param i32 i32 i32)))
    (import "host" "entropy" (func $entropy (result i64)))
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "environment" (func $environment (param i32)))
    (import "host" "block" (func $block (param i32)))
    (import "host" "drop-pollable" (func $drop-pollable (param i32)))
    (import "host" "now" (func $now (result i64)))
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "wall" (func $wall (param i32)))
    (import "host" "random" (func $random (result i64)))
    (import "host" "seed" (func $seed (param i32)))
    (import "host" "socket" (func $socket (param i32)))

    (global $counter (mut i64) (i64.const 0))
    (global $armed (mut i64) (i64.const 0))
    (table funcref (elem $recurse))
    (type $recurse (func (param i32) (result i32)))
    ;; 0: reply buffer of 256 bytes; 256: results; 1024: texts.
    (data (i32.const 1024) "hostile" "1" "\1b[2Jline one\nline two" "\ff\fe")

    (func (export "describe") (result i32)
      ⟨describe⟩
      (i32.store (i32.const 256) (i32.const 1024)) (i32.store (i32.const 260) (i32.const 7))
      (i32.store (i32.const 264) (i32.const 1031)) (i32.store (i32.const 268) (i32.const 1))
      (i32.store (i32.const 272) (i32.const 3)) (i32.store (i32.const 276) (i32.const 2))
      (i32.const 256))

    (func $recurse (type $recurse)
      (i32.add (i32.const 1)
        (call_indirect (type $recurse) (i32.add (local.get 0) (i32.const 1)) (i32.const 0))))

    ;; result<list<u8>, rejection> at 256: the first `len` bytes of the reply buffer.
    (func $ok (param $len i32) (result i32)
      (i32.store8 (i32.const 256) (i32.const 0))
      (i32.store (i32.const 260) (i32.const 0))
      (i32.store (i32.const 264) (local.get $len))
      (i32.const 256))
    (func $rejected (param $code i32) (param $at i32) (param $len i32) (result i32)
      (i32.store8 (i32.const 256) (i32.const 1))
      (i32.store (i32.const 260) (local.get $code))
      (i32.store (i32.const 264) (local.get $at))
      (i32.store (i32.const 268) (local.get $len))
      (i32.const 256))
    (func $number (param i64) (result i32) (i64.store (i32.const 0) (local.get 0)) (call $ok (i32.const 8)))

    (func $is (param $verb i32) (param $letter i32) (result i32) (i32.eq (local.get $verb) (local.get $letter)))

    (func $apply (export "apply") (param $index i64) (param i64) (param $now i64) (param $at i32) (param $len i32)
        (result i32)
      (local $verb i32) (local $pollable i32)
      (local.set $verb (if (result i32) (local.get $len) (then (i32.load8_u (local.get $at))) (else (i32.const 0))))
      (call $reset)
      (if (call $is (local.get $verb) (i32.const 97)) (then ;; a: add
        (global.set $counter (i64.add (global.get $counter) (i64.const 1)))
        (return (call $number (global.get $counter)))))
      (if (call $is (local.get $verb) (i32.const 103)) (then (return (call $number (global.get $counter))))) ;; g: get
      ;; Every mistake is made after the state was touched, so that a trace of it would show.
      (global.set $counter (i64.add (global.get $counter) (i64.const 1000)))
      (if (call $is (local.get $verb) (i32.const 108)) (then (loop $l (br $l)))) ;; l: loop
      (if (call $is (local.get $verb) (i32.const 117)) (then unreachable)) ;; u
      (if (call $is (local.get $verb) (i32.const 114)) (then (return (call $recurse (i32.const 0))))) ;; r
      (if (call $is (local.get $verb) (i32.const 100)) (then ;; d: divide
        (return (i32.div_u (i32.const 1) (i32.const 0)))))
      (if (call $is (local.get $verb) (i32.const 111)) (then (return (i32.load (i32.const -8))))) ;; o: out of bounds
      (if (call $is (local.get $verb) (i32.const 102)) (then ;; f: no such function
        (return (call_indirect (type $recurse) (i32.const 0) (i32.const 9)))))
      (if (call $is (local.get $verb) (i32.const 98)) (then ;; b: a bit more than is allowed
        (drop (memory.grow (i32.const 64)))
        (return (call $ok (i32.const 1048577)))))
      (if (call $is (local.get $verb) (i32.const 66)) (then ;; B: a lot more
        (drop (memory.grow (i32.const 512)))
        (return (call $ok (i32.const 33554432)))))
      (if (call $is (local.get $verb) (i32.const 112)) (then (return (call $ok (i32.const -16))))) ;; p: past memory
      (if (call $is (local.get $verb) (i32.const 80)) (then (return (i32.const -4)))) ;; P: the result itself
      (if (call $is (local.get $verb) (i32.const 120)) (then ;; x: no such case
        (drop (call $ok (i32.const 0)))
        (i32.store8 (i32.const 256) (i32.const 9))
        (return (i32.const 256))))
      (if (call $is (local.get $verb) (i32.const 105)) (then ;; i: not UTF-8
        (return (call $rejected (i32.const 1) (i32.const 1053) (i32.const 2)))))
      (if (call $is (local.get $verb) (i32.const 109)) (then ;; m: memory for ever
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        unreachable))
      (if (call $is (local.get $verb) (i32.const 101)) (then (call $exit (i32.const 1)))) ;; e: exit
      (if (call $is (local.get $verb) (i32.const 119)) (then ;; w: wait for ever
        (call $block (call $subscribe (i64.const -1)))))
      (if (call $is (local.get $verb) (i32.const 104)) (then ;; h: handles for ever
        (loop $more (drop (call $subscribe (i64.const 0))) (br $more))))
      (if (call $is (local.get $verb) (i32.const 72)) (then (call $block (i32.const 77)))) ;; H: a handle it has not
      (if (call $is (local.get $verb) (i32.const 76)) (then ;; L: a log line of 32 KiB
        (call $emit (i32.const 2) (i32.const 0) (i32.const 32768))))
      (if (call $is (local.get $verb) (i32.const 78)) (then ;; N: a log line that does not fit a call
        (drop (memory.grow (i32.const 512)))
        (call $emit (i32.const 2) (i32.const 0) (i32.const 33554432))))
      (global.set $counter (i64.sub (global.get $counter) (i64.const 1000)))

      (if (call $is (local.get $verb) (i32.const 106)) (then ;; j: a rejection
        (return (call $rejected (i32.const 42) (i32.const 1024) (i32.const 7)))))
      (if (call $is (local.get $verb) (i32.const 110)) (then ;; n: a noisy line
        (call $emit (i32.const 2) (i32.const 1032) (i32.const 21))
        (return (call $number (global.get $counter)))))
      (if (call $is (local.get $verb) (i32.const 77)) (then ;; M: as many pages as there are
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (return (call $number (i64.extend_i32_u (memory.size))))))
      (if (call $is (local.get $verb) (i32.const 116)) (then ;; t: time before and after a sleep of a second, and seeds
        (i64.store (i32.const 0) (call $now))
        (local.set $pollable (call $subscribe (i64.const 1000000000)))
        (call $block (local.get $pollable))
        (call $drop-pollable (local.get $pollable))
        (i64.store (i32.const 8) (call $now))
        (call $wall (i32.const 16))
        (i64.store (i32.const 32) (call $entropy))
        (i64.store (i32.const 40) (call $random))
        (call $seed (i32.const 48))
        (call $environment (i32.const 64))
        (call $socket (i32.const 72))
        (return (call $ok (i32.const 74)))))
      (if (call $is (local.get $verb) (i32.const 65)) (then ;; A: arms the trap of the letter behind it
        (global.set $armed (i64.load8_u (i32.add (local.get $at) (i32.const 1))))
        (return (call $number (global.get $armed)))))
      (call $rejected (i32.const 0) (i32.const 1024) (i32.const 0)))

    (func $trap-if (param $letter i64)
      (if (i64.eq (global.get $armed) (local.get $letter)) (then unreachable)))

    (func (export "save") (param $sink i32) (result i32)
      (call $reset)
      (call $trap-if (i64.const 115)) ;; s
      (i64.store (i32.const 0) (global.get $counter))
      (i64.store (i32.const 8) (global.get $armed))
      (if (i64.eq (global.get $armed) (i64.const 83)) (then ;; S: writes for ever
        (loop $more (call $write (local.get $sink) (i32.const 0) (i32.const 65536)) (br $more))))
      (call $write (local.get $sink) (i32.const 0) (i32.const 10))
      (call $write (local.get $sink) (i32.const 10) (i32.const 6))
      (call $drop-sink (local.get $sink))
      (if (i64.eq (global.get $armed) (i64.const 106)) (then ;; j: refuses, after it has written
        (return (call $rejected (i32.const 42) (i32.const 1024) (i32.const 7)))))
      (call $ok (i32.const 0)))

    (func (export "restore") (param $schema i32) (param $source i32) (result i32)
      (call $reset)
      (call $read (local.get $source) (i32.const 16) (i32.const 512))
      (call $drop-source (local.get $source))
      (if (i32.ne (i32.load (i32.const 516)) (i32.const 16)) (then
        (return (call $rejected (i32.const 7) (i32.const 1024) (i32.const 7)))))
      (global.set $counter (i64.load (i32.load (i32.const 512))))
      (global.set $armed (i64.load offset=8 (i32.load (i32.const 512))))
      (call $trap-if (i64.const 114)) ;; r
      (call $ok (i32.const 0)))

    (func (export "apply-conf-change") (param i64 i64 i64) (param $kind i32) (param $node i64) (param i32 i32)
        (result i32)
      (call $reset)
      (call $trap-if (i64.const 99)) ;; c
      (global.set $counter (i64.add (global.get $counter) (local.get $node)))
      (if (i32.eq (local.get $kind) (i32.const 3)) (then
        (return (call $rejected (i32.const 42) (i32.const 1024) (i32.const 7)))))
      (call $ok (i32.const 0)))

    (func (export "process-status-change") (param i64 i64 i64) (param i32) (param $old i64) (param $new i64) (param i64)
      (call $reset)
      (global.set $counter (i64.add (global.get $counter) (local.get $new)))
      (call $trap-if (i64.const 108))) ;; l

    (func (export "init") (param i64 i64 i64) (param $at i32) (param $len i32) (result i32)
      (global.set $counter (i64.extend_i32_u (local.get $len)))
      (if (i32.eq (local.get $len) (i32.const 5)) (then unreachable))
      (call $reset)
      (call $ok (i32.const 0)))

    (func (export "query") (param $index i64) (param i64 i64) (param $at i32) (param $len i32) (result i32)
      (local $verb i32)
      (local.set $verb (i32.load8_u (local.get $at)))
      (call $reset)
      (if (call $is (local.get $verb) (i32.const 105)) (then (return (call $number (local.get $index))))) ;; i: index
      (if (call $is (local.get $verb) (i32.const 119)) (then ;; w: writes where it may not
        (global.set $counter (i64.const 555))
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (return (call $number (global.get $counter)))))
      (if (call $is (local.get $verb) (i32.const 112)) (then ;; p: how many pages there are with one more, and what is on that
        (local.set $at (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)))
        (i64.store (i32.const 0) (i64.or (i64.load (local.get $at)) (i64.extend_i32_u (memory.size))))
        (memory.fill (local.get $at) (i32.const 255) (i32.const 65536))
        (return (call $ok (i32.const 8)))))
      (if (call $is (local.get $verb) (i32.const 117)) (then (global.set $counter (i64.const 666)) unreachable))
      (if (call $is (local.get $verb) (i32.const 108)) (then (loop $l (br $l))))
      (if (call $is (local.get $verb) (i32.const 114)) (then (return (call $recurse (i32.const 0)))))
      (call $number (global.get $counter)))

    ;; list<result<list<u8>, rejection>>: apply, one by one; each answer is copied out of the reply buffer.
    (func (export "apply-batch") (param $index i64) (param $term i64) (param $now i64) (param $at i32) (param $len i32)
        (result i32)
      (local $i i32) (local $to i32)
      (loop $next
        (if (i32.lt_u (local.get $i) (local.get $len)) (then
          (local.set $to (i32.add (i32.const 2048) (i32.mul (local.get $i) (i32.const 16))))
          (memory.copy (local.get $to)
            (call $apply (local.get $index) (local.get $term) (local.get $now)
              (i32.load (i32.add (local.get $at) (i32.mul (local.get $i) (i32.const 8))))
              (i32.load offset=4 (i32.add (local.get $at) (i32.mul (local.get $i) (i32.const 8)))))
            (i32.const 16))
          (i64.store (i32.add (i32.const 3072) (i32.mul (local.get $i) (i32.const 8))) (i64.load (i32.const 0)))
          (if (i32.eqz (i32.load8_u (local.get $to))) (then
            (i32.store offset=4 (local.get $to)
              (i32.add (i32.const 3072) (i32.mul (local.get $i) (i32.const 8))))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $next))))
      (i32.store (i32.const 256) (i32.const 2048))
      (i32.store (i32.const 260) (i32.add (local.get $len) (global.get $too-many)))
      (i32.const 256))
    (global $too-many i32 (i32.const ⟨too-many⟩)))

  (core instance $main (instantiate $Main (with "host" (instance
    (export "memory" (memory $memory "memory"))
    (export "reset" (func $memory "reset"))
    (export "write" (func $write))
    (export "read" (func $read))
    (export "drop-sink" (func $drop-sink))
    (export "drop-source" (func $drop-source))
    (export "emit" (func $emit))
    (export "entropy" (func $entropy))
    (export "exit" (func $exit))
    (export "environment" (func $environment))
    (export "block" (func $block))
    (export "drop-pollable" (func $drop-pollable))
    (export "now" (func $now))
    (export "subscribe" (func $subscribe))
    (export "wall" (func $wall))
    (export "random" (func $random))
    (export "seed" (func $seed))
    (export "socket" (func $socket))))))

  (func $describe (result $descriptor) (canon lift (core func $main "describe") (memory (core memory $memory "memory"))))
  (func $apply (param "ctx" $context) (param "request" (list u8)) (result (result (list u8) (error $rejection)))
    (canon lift (core func $main "apply")
      (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
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
  ⟨optional⟩)
