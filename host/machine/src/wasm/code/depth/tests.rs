use super::*;
use crate::wasm::Engine;
use crate::wasm::engine::{APPLY_THREAD_STACK_BYTES, FEATURES};
use wasmtime::component::Linker;
use wasmtime::{Store, Trap};

/// Calls `f: func(s32) -> s32` of a component whose core module is `module`.
fn call(module: &str, argument: i32) -> (Result<i32, Trap>, u64) {
    let text = format!(
        "(component (core module $m {module}) (core instance $i (instantiate $m))
           (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i \"f\"))))"
    );
    call_component(&text, 1, argument)
}

/// Calls `f` of a component with so many components with code in it.
fn call_component(text: &str, scopes: u64, argument: i32) -> (Result<i32, Trap>, u64) {
    let bytes = count_stack(&wat::parse_str(text).unwrap(), scopes, FEATURES).unwrap();
    std::thread::Builder::new()
        .stack_size(APPLY_THREAD_STACK_BYTES)
        .spawn(move || {
            let engine = Engine::new().unwrap();
            let component = wasmtime::component::Component::new(engine.inner(), bytes).unwrap();
            let mut store = Store::new(engine.inner(), ());
            store.set_fuel(1_000_000_000).unwrap();
            let instance = Linker::new(engine.inner())
                .instantiate(&mut store, &component)
                .unwrap();
            let f = instance
                .get_typed_func::<(i32,), (i32,)>(&mut store, "f")
                .unwrap();
            let result = f.call(&mut store, (argument,));
            let fuel = 1_000_000_000 - store.get_fuel().unwrap();
            (
                result
                    .map(|(n,)| n)
                    .map_err(|error| *error.downcast_ref().unwrap()),
                fuel,
            )
        })
        .unwrap()
        .join()
        .unwrap()
}

/// n + (n - 1) + … + 1, by recursion, leaving through `return`, a branch to the function's label, and the end.
const SUM: &str = "(func $f (export \"f\") (param i32) (result i32)
    (if (i32.eqz (local.get 0)) (then (return (i32.const 0))))
    (block (result i32)
      (br_if 1 (i32.add (local.get 0) (call $f (i32.sub (local.get 0) (i32.const 1))))
               (i32.and (local.get 0) (i32.const 1)))))";

#[test]
fn a_function_still_means_the_same() {
    for n in [0, 1, 2, 3, 100, 5_000] {
        assert_eq!(call(SUM, n).0, Ok(n * (n + 1) / 2));
    }
}

#[test]
fn endless_recursion_traps_like_any_other_mistake() {
    let (result, fuel) = call(SUM, i32::MAX);
    assert_eq!(result, Err(Trap::UnreachableCodeReached));
    assert_eq!(call(SUM, i32::MAX).1, fuel);
}

#[test]
fn recursion_through_a_table_and_between_functions_is_counted() {
    let text = "(type $t (func (param i32) (result i32))) (table funcref (elem $a $b))
        (func $a (type $t) (call_indirect (type $t) (local.get 0) (i32.const 1)))
        (func $b (type $t) (call $a (local.get 0)))
        (func (export \"f\") (type $t) (call $a (local.get 0)))";
    assert_eq!(call(text, 1).0, Err(Trap::UnreachableCodeReached));
}

/// Modules that call each other round and round, each a little way into its own recursion before it calls the next.
fn ring(modules: usize) -> String {
    let mut text = "(component
        (core module $hub (table (export \"t\") 64 funcref))
        (core instance $hub (instantiate $hub))"
        .to_owned();
    for n in 0..modules {
        let next = (n + 1) % modules;
        text += &format!(
            "(core module $m{n} (type $t (func (param i32) (result i32)))
               (import \"hub\" \"t\" (table 64 funcref))
               (global $own (export \"own\") (mut i32) (i32.const {n}))
               (func $f (export \"f\") (type $t)
                 (if (i32.eqz (local.get 0)) (then (return (global.get $own))))
                 (i32.add (global.get $own) (call_indirect (type $t)
                   (i32.sub (local.get 0) (i32.const 1)) (i32.const {next}))))
               (elem (i32.const {n}) $f))
             (core instance $i{n} (instantiate $m{n} (with \"hub\" (instance $hub))))"
        );
    }
    text + "(func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i0 \"f\"))))"
}

#[test]
fn modules_that_call_each_other_count_together() {
    // Few calls: every module still has its own globals.
    assert_eq!(call_component(&ring(60), 1, 59).0, Ok(59 * 60 / 2));
    // Were they counted one by one, sixty of them would have 120 MiB, and the native stack would end first.
    let (result, fuel) = call_component(&ring(60), 1, i32::MAX);
    assert_eq!(result, Err(Trap::UnreachableCodeReached));
    assert_eq!(call_component(&ring(60), 1, i32::MAX).1, fuel);
}

/// A component of `depth` components, each of which goes down in itself and then calls the one before.
fn chain(components: usize) -> String {
    let mut text = "(component (component $first (core module $m
          (func (export \"f\") (param i32) (result i32) (local.get 0)))
          (core instance $i (instantiate $m))
          (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i \"f\"))))
        (instance $i0 (instantiate $first))
        (component $next
          (import \"next\" (instance $next (export \"f\" (func (param \"n\" s32) (result s32)))))
          (core func $next (canon lower (func $next \"f\")))
          (core module $m (import \"next\" \"f\" (func $next (param i32) (result i32)))
            (func $down (param i32) (result i32)
              (if (result i32) (local.get 0)
                (then (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
                (else (call $next (global.get $n)))))
            (global $n (mut i32) (i32.const 0))
            (func (export \"f\") (param i32) (result i32)
              (global.set $n (local.get 0)) (call $down (local.get 0))))
          (core instance $i (instantiate $m (with \"next\" (instance (export \"f\" (func $next))))))
          (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i \"f\"))))"
        .to_owned();
    for n in 1..components {
        text += &format!(
            "(instance $i{n} (instantiate $next (with \"next\" (instance $i{}))))",
            n - 1
        );
    }
    let last = components - 1;
    text + &format!("(export \"f\" (func $i{last} \"f\")))")
}

#[test]
fn components_that_call_each_other_share_the_limit() {
    const COMPONENTS: usize = 40;
    let (chain, scopes) = (chain(COMPONENTS), COMPONENTS as u64);
    assert_eq!(
        call_component(&chain, scopes, 10).0,
        Ok(10 * COMPONENTS as i32)
    );
    // As deep as each may go, in all of them at once: the native stack holds it.
    let deepest = (0..20)
        .rev()
        .map(|power| 1 << power)
        .find(|n| call_component(&chain, scopes, *n).0.is_ok())
        .unwrap();
    assert!(deepest > 100, "{deepest}");
    assert_eq!(
        call_component(&chain, scopes, 2 * deepest).0,
        Err(Trap::UnreachableCodeReached)
    );
}

#[test]
fn what_hides_which_module_runs_where_is_refused() {
    for (text, error) in [
        (
            "(component (component (import \"m\" (core module))))",
            "from one component to another",
        ),
        (
            "(component (core module $m) (export \"m\" (core module $m)))",
            "from one component to another",
        ),
        (
            "(component (core module (import \"skep:stack\" \"s\" (global (mut i32)))))",
            "the host's own name",
        ),
    ] {
        let refused = count_stack(&wat::parse_str(text).unwrap(), 1, FEATURES).unwrap_err();
        assert!(refused.to_string().contains(error), "{text}: {refused}");
    }
}

#[test]
fn modules_are_found_again_behind_the_host_s_own() {
    // Defined before and behind the first instance, aliased from outside, and instantiated with arguments.
    let text = "(component
        (core module $one (func (export \"f\") (result i32) (i32.const 1)))
        (component $inner (alias outer 1 $one (core module $one))
          (core module $two (import \"a\" \"f\" (func $f (result i32)))
            (func (export \"f\") (param i32) (result i32) (i32.add (call $f) (local.get 0))))
          (core instance $a (instantiate $one))
          (core module $three (func (export \"f\") (result i32) (i32.const 3)))
          (core instance $c (instantiate $three))
          (alias core export $c \"f\" (core func $f))
          (core instance $d (export \"f\" (func $f)))
          (core instance $b (instantiate $two (with \"a\" (instance $d))))
          (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $b \"f\"))))
        (core instance (instantiate $one))
        (core module $late (func (export \"f\") (result i32) (i32.const 4)))
        (component $outer (alias outer 1 $late (core module $late))
          (core instance (instantiate $late)))
        (instance (instantiate $outer))
        (instance $i (instantiate $inner))
        (export \"f\" (func $i \"f\")))";
    assert_eq!(call_component(text, 3, 10).0, Ok(13));
}

#[test]
fn tail_calls_use_no_stack() {
    let text = "(func $f (export \"f\") (param i32) (result i32)
        (if (i32.eqz (local.get 0)) (then (return (i32.const 7))))
        (return_call $f (i32.sub (local.get 0) (i32.const 1))))";
    assert_eq!(call(text, 1_000_000).0, Ok(7));
}

#[test]
fn the_count_goes_back_after_a_call_whichever_way_it_ends() {
    // A loop of many calls: each must give back what it took.
    let text = "(global $mine (mut i32) (i32.const 5))
        (func $g (param i32) (result i32) (call $h) (drop) (drop)
          (if (i32.and (local.get 0) (i32.const 1)) (then (return (i32.const 1)))) (i32.const 2))
        (func $h (result i32 i64) (if (i32.const 1) (then (return (i32.const 1) (i64.const 2))))
          (call $i) (i64.const 3))
        (func $i (result i32) (i32.const 0))
        (func (export \"f\") (param i32) (result i32)
          (loop $again
            (global.set $mine (i32.add (global.get $mine) (call $g (local.get 0))))
            (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
            (br_if $again (local.get 0)))
          (global.get $mine))";
    assert_eq!(call(text, 200_000).0, Ok(5 + 300_000));
}

#[test]
fn a_large_frame_costs_more_than_a_small_one() {
    let deep = |locals: &str| {
        let module = format!(
            "(global $deepest (mut i32) (i32.const 0))
             (func $f (param i32) (result i32) (local {locals})
               (if (i32.eqz (local.get 0)) (then (return (i32.const 1))))
               (call $f (i32.sub (local.get 0) (i32.const 1))))
             (func (export \"f\") (param i32) (result i32) (call $f (local.get 0)))"
        );
        (0..20)
            .take_while(|power| call(&module, 1 << power).0.is_ok())
            .count()
    };
    assert!(deep("i32") > deep(&"v128 ".repeat(200)));
}

#[test]
fn garbage_is_an_error() {
    assert!(count_stack(b"\0asm\x0d\0\x01\0\x01\x7f", 1, FEATURES).is_err());
    assert!(count_stack(b"not wasm", 1, FEATURES).is_err());
}
