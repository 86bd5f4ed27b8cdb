//! Carries the state of one instance into another, as a host does that owns the memories.

mod rig;

use self::rig::Guest;
use super::*;
use crate::wasm::code::depth::count_stack;
use crate::wasm::code::expansion::size_of;

fn imaged(bytes: &[u8]) -> Result<Vec<u8>, NoImage> {
    match with_image(bytes).unwrap() {
        Rewritten::Imaged(made) => Ok(made),
        Rewritten::Refused(why) => Err(why),
    }
}

/// Starts it, calls `put` with each number, and takes an image: a fresh instance with that image answers `look` as the first
/// one did, and does so after more of the same. The first one gets its globals back from its own image.
fn check(text: &str, images: usize) {
    let guest = Guest::new(text);
    let (mut first, mut second) = (guest.start(), guest.start());
    let fresh = second.call("look", 0);
    for number in [3, -4, 5] {
        first.call("put", number);
    }
    let seen = first.call("look", 0);
    assert_ne!(seen, fresh);
    assert_eq!(first.freeze(), images);
    second.become_as(&first);
    assert_eq!(second.call("look", 0), seen);
    let frozen = first.contents();
    assert_eq!(second.contents(), frozen);
    for number in [70, 1] {
        let both = [&mut first, &mut second].map(|each| each.call("put", number));
        assert_eq!(both[0], both[1]);
    }
    assert_ne!(first.call("look", 0), seen);
    assert_eq!(first.call("look", 0), second.call("look", 0));
    assert_eq!(first.contents(), second.contents());
}

/// Lifts `put` and `look` of a core instance.
const LIFTED: &str =
    "(func (export \"put\") (param \"n\" s32) (result s32) (canon lift (core func $i \"put\")))
    (func (export \"look\") (param \"n\" s32) (result s32) (canon lift (core func $i \"look\")))";

fn component(items: &str) -> String {
    format!("(component {items} {LIFTED})")
}

/// A component that calls `f` with a handle, and one that gives it to it.
fn lender(of: &str, ty: &str) -> String {
    format!(
        "(component (import \"r\" (instance $r (export \"r\" (type (sub resource)))))
           (alias export $r \"r\" (type $r))
           (component $caller (import \"r\" (type $r (sub resource)))
             (import \"f\" (func $f (param \"h\" {ty}))) (core func (canon lower (func $f))))
           (component $shim (import \"r\" (type $r (sub resource)))
             (import \"f\" (func $f (param \"h\" {ty}))) (export \"f\" (func $f)))
           (component $callee (import \"r\" (type $r (sub resource)))
             (core module $m (func (export \"f\") (param i32)))
             (core instance $m (instantiate $m))
             (func (export \"f\") (param \"h\" {ty}) (canon lift (core func $m \"f\"))))
           (instance $callee (instantiate $callee (with \"r\" (type $r))))
           (instance $shim (instantiate $shim (with \"r\" (type $r)) (with \"f\" (func $callee \"f\"))))
           {of})"
    )
}

#[test]
fn handles_may_pass_between_the_host_and_a_component_only() {
    let call =
        "(instance (instantiate $caller (with \"r\" (type $r)) (with \"f\" (func $shim \"f\"))))";
    let lower = "(core func (canon lower (func $callee \"f\")))";
    for (of, ty, refused) in [
        (call, "(own $r)", true),
        (call, "(borrow $r)", true),
        (lower, "(own $r)", true),
        ("(export \"f\" (func $shim \"f\"))", "(borrow $r)", false),
        (call, "u32", false),
    ] {
        let text = lender(of, ty);
        let bytes = wat::parse_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let expected = refused.then_some(NoImage::PassedHandles);
        assert_eq!(imaged(&bytes).err(), expected, "{of} {ty}");
    }
}

/// A component that is given handles by an import, with these items besides.
fn given(items: &str) -> String {
    format!(
        "(component
           (import \"wasi:io/streams@0.2.6\" (instance $io (export \"output-stream\" (type (sub resource)))))
           (alias export $io \"output-stream\" (type $r))
           (import \"wasi:cli/stdout@0.2.6\" (instance $out
             (alias outer 1 $r (type $s)) (export \"output-stream\" (type $t (eq $s)))
             (export \"get-stdout\" (func (result (own $t))))))
           {COUNTER} (core instance (instantiate $counter)) {items})"
    )
}

#[test]
fn handles_can_be_given_where_one_component_alone_has_any() {
    let call = "(core func (canon lower (func $out \"get-stdout\")))";
    let plain = "(component $c)";
    let inner = "(component $c (import \"r\" (type $r (sub resource))) (core func (canon resource.drop $r)))";
    let (bare, with) = (
        "(instance (instantiate $c))",
        "(instance (instantiate $c (with \"r\" (type $r))))",
    );
    for (items, can) in [
        (call.to_owned(), true),
        (format!("{call} {plain} {bare}"), true),
        // It is there, and nobody instantiates it.
        (format!("{call} {inner}"), true),
        (format!("{call} {inner} {with}"), false),
        (format!("{inner} {with}"), false),
        (String::new(), false),
    ] {
        let made = imaged(&wat::parse_str(given(&items)).unwrap()).unwrap();
        let mut imports = Vec::new();
        for payload in Parser::new(0).parse_all(&made) {
            if let Payload::ComponentImportSection(section) = payload.unwrap() {
                imports.extend(
                    section
                        .into_iter()
                        .map(|import| import.unwrap().name.name.to_owned()),
                );
            }
        }
        let follows = imports.iter().filter_map(|name| Follower::import_of(name));
        let expected: &[&str] = if can { &["wasi:cli/stdout@0.2.6"] } else { &[] };
        assert_eq!(follows.collect::<Vec<_>>(), expected, "{items}");
        let counted = count_stack(&made, 1, FEATURES_OF_CODE).unwrap();
        let valid = Validator::new_with_features(FEATURES_OF_CODE).validate_all(&counted);
        valid.unwrap();
    }
}

/// A module that counts in a global and writes to its memory where the global says.
const COUNTER: &str = "(core module $counter (memory 1) (global $n (mut i32) (i32.const 8))
    (func (export \"put\") (param i32) (result i32)
      (global.set $n (i32.add (global.get $n) (i32.const 4)))
      (i32.store (global.get $n) (local.get 0)) (global.get $n))
    (func (export \"look\") (param i32) (result i32)
      (i32.add (i32.mul (global.get $n) (i32.const 1000)) (i32.load (global.get $n)))))";

#[test]
fn globals_of_every_type_come_back_bit_by_bit() {
    // What is put goes into every global, and what is looked at is made of all. Not every pattern of bits is a number.
    let text = component(
        "(core module $m
          (global $none i32 (i32.const 7))
          (global $a (mut i32) (i32.const 1)) (global $b (mut i64) (i64.const 1))
          (global $c (export \"c\") (mut f32) (f32.const 1)) (global $d (mut f64) (f64.const 1))
          (global $e (mut v128) (v128.const i64x2 0 0))
          (func (export \"put\") (param i32) (result i32)
            (global.set $a (local.get 0))
            (global.set $b (i64.extend_i32_s (local.get 0)))
            (global.set $c (f32.reinterpret_i32 (i32.or (i32.const 0x7fa00000) (local.get 0))))
            (global.set $d (f64.reinterpret_i64
              (i64.or (i64.const 0x7ff4000000000000) (i64.extend_i32_u (local.get 0)))))
            (global.set $e (i64x2.replace_lane 1 (global.get $e) (global.get $b)))
            (local.get 0))
          (func (export \"look\") (param i32) (result i32)
            (i32.xor (i32.rotl (global.get $a) (i32.const 3))
            (i32.xor (i32.rotl (i32.wrap_i64 (i64.shr_u (global.get $b) (i64.const 32))) (i32.const 5))
            (i32.xor (i32.rotl (i32.reinterpret_f32 (global.get $c)) (i32.const 7))
            (i32.xor (i32.rotl (i32.wrap_i64 (i64.reinterpret_f64 (global.get $d))) (i32.const 11))
                     (i32.rotl (i32.wrap_i64 (i64x2.extract_lane 1 (global.get $e))) (i32.const 13))))))))
        (core instance $i (instantiate $m))",
    );
    check(&text, 1);
}

#[test]
fn an_instance_gets_its_own_globals_back() {
    let guest = Guest::new(&component(&format!(
        "{COUNTER} (core instance $i (instantiate $counter))"
    )));
    let mut running = guest.start();
    assert_eq!(running.call("put", 1), 12);
    running.freeze();
    assert_eq!(running.call("put", 1), 16);
    assert_eq!(running.call("put", 1), 20);
    running.images(THAW).unwrap();
    assert_eq!(running.call("put", 1), 16);
}

#[test]
fn memories_that_grew_grow_again_and_one_that_is_too_large_is_refused() {
    let text = component(
        "(core module $m (memory $a 1) (memory $b 0 4) (memory $c 2)
          (func (export \"put\") (param i32) (result i32)
            (drop (memory.grow $a (i32.const 1)))
            (drop (memory.grow $b (i32.const 1)))
            (i32.store $a (i32.sub (i32.mul (memory.size $a) (i32.const 65536)) (i32.const 4))
                       (local.get 0))
            (i32.store $b (i32.const 32) (local.get 0))
            (local.get 0))
          (func (export \"look\") (param i32) (result i32)
            (i32.add (i32.mul (memory.size $a) (i32.const 100000))
            (i32.add (i32.mul (memory.size $b) (i32.const 10000))
            (i32.add (i32.mul (memory.size $c) (i32.const 1000))
                     (i32.load $a (i32.sub (i32.mul (memory.size $a) (i32.const 65536)) (i32.const 4))))))))
        (core instance $i (instantiate $m))",
    );
    check(&text, 1);
    let guest = Guest::new(&text);
    let (small, mut large) = (guest.start(), guest.start());
    large.call("put", 1);
    large.take(&small, true);
    assert!(large.images(THAW).is_err());
}

#[test]
fn a_module_instantiated_twice_has_two_states() {
    let text = component(&format!(
        "{COUNTER} (core instance $a (instantiate $counter)) (core instance $b (instantiate $counter))
         (core module $both (import \"a\" \"put\" (func $a (param i32) (result i32)))
           (import \"b\" \"put\" (func $b (param i32) (result i32)))
           (import \"a\" \"look\" (func $la (param i32) (result i32)))
           (import \"b\" \"look\" (func $lb (param i32) (result i32)))
           (func (export \"put\") (param i32) (result i32)
             (drop (call $b (local.get 0))) (drop (call $b (local.get 0)))
             (call $a (i32.add (i32.const 1) (local.get 0))))
           (func (export \"look\") (param i32) (result i32)
             (i32.add (i32.mul (i32.const 3) (call $la (i32.const 0))) (call $lb (i32.const 0)))))
         (core instance $i (instantiate $both (with \"a\" (instance $a)) (with \"b\" (instance $b))))"
    ));
    check(&text, 1);
}

#[test]
fn a_global_that_one_module_lends_another_is_written_down_once() {
    let text = component(
        "(core module $own (global (export \"g\") (mut i32) (i32.const 1)) (memory (export \"m\") 1))
         (core instance $own (instantiate $own))
         (core module $m (import \"own\" \"g\" (global $g (mut i32))) (import \"own\" \"m\" (memory 1))
           (global $mine (mut i64) (i64.const 5))
           (func (export \"put\") (param i32) (result i32)
             (global.set $g (i32.add (global.get $g) (local.get 0)))
             (global.set $mine (i64.add (global.get $mine) (i64.const 1)))
             (i32.store (i32.const 0) (global.get $g)) (global.get $g))
           (func (export \"look\") (param i32) (result i32)
             (i32.add (i32.mul (i32.load (i32.const 0)) (i32.const 1000))
                      (i32.add (global.get $g) (i32.wrap_i64 (global.get $mine))))))
         (core instance $i (instantiate $m (with \"own\" (instance $own))))",
    );
    check(&text, 1);
}

/// Components two deep, one of them instantiated twice, with a module from outside; and their answers added up.
fn nested() -> String {
    let imports = |names: &[&str]| {
        names
            .iter()
            .map(|name| {
                format!(
                    "(core func ${name}p (canon lower (func ${name} \"put\")))
                     (core func ${name}l (canon lower (func ${name} \"look\")))
                     (core instance ${name}c (export \"put\" (func ${name}p)) (export \"look\" (func ${name}l)))"
                )
            })
            .collect::<String>()
    };
    let both = "(core module $both (import \"a\" \"put\" (func $a (param i32) (result i32)))
        (import \"b\" \"put\" (func $b (param i32) (result i32)))
        (import \"a\" \"look\" (func $la (param i32) (result i32)))
        (import \"b\" \"look\" (func $lb (param i32) (result i32)))
        (global $n (mut i32) (i32.const 0))
        (func (export \"put\") (param i32) (result i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1)))
          (if (i32.and (global.get $n) (i32.const 1)) (then (return (call $a (local.get 0)))))
          (drop (call $a (local.get 0)))
          (call $b (i32.add (i32.const 1) (local.get 0))))
        (func (export \"look\") (param i32) (result i32)
          (i32.add (global.get $n)
            (i32.add (i32.mul (i32.const 3) (call $la (i32.const 0))) (call $lb (i32.const 0))))))";
    let interface = "(instance (export \"put\" (func (param \"n\" s32) (result s32)))
        (export \"look\" (func (param \"n\" s32) (result s32))))";
    // A component cannot call what is within it, so the parts are given to another beside them.
    let adder = format!(
        "(component $adder
           (import \"a\" {a}) (import \"b\" {b})
           {imports} {both}
           (core instance $i (instantiate $both (with \"a\" (instance $ac)) (with \"b\" (instance $bc))))
           {LIFTED})",
        a = interface.replacen("(instance", "(instance $a", 1),
        b = interface.replacen("(instance", "(instance $b", 1),
        imports = imports(&["a", "b"]),
    );
    format!(
        "(component {COUNTER} {adder}
           (component $leaf (alias outer 1 $counter (core module $m))
             (core instance $i (instantiate $m)) {LIFTED})
           (component $pair
             (alias outer 1 $leaf (component $leaf)) (alias outer 1 $adder (component $adder))
             (component $own {COUNTER} (core instance $i (instantiate $counter)) {LIFTED})
             (instance $a (instantiate $leaf)) (instance $b (instantiate $own))
             (instance $both (instantiate $adder (with \"a\" (instance $a)) (with \"b\" (instance $b))))
             (export \"put\" (func $both \"put\")) (export \"look\" (func $both \"look\")))
           (instance $one (instantiate $pair)) (instance $two (instantiate $pair))
           (core instance (instantiate $counter))
           (instance $all (instantiate $adder (with \"a\" (instance $one)) (with \"b\" (instance $two))))
           (export \"put\" (func $all \"put\")) (export \"look\" (func $all \"look\")))"
    )
}

#[test]
fn components_within_components_are_frozen_with_them() {
    let text = nested();
    // Two pairs of three components each, the adder around them, and the outermost.
    check(&text, 2 * 3 + 1 + 1);
    let scopes = size_of(&wat::parse_str(&text).unwrap()).unwrap().scopes;
    assert_eq!(scopes, 2 * 3 + 1 + 1);
}

#[test]
fn what_an_image_would_not_hold_is_refused() {
    let module = |items: &str| format!("(component (core module {items}))");
    let many = |n: usize, item: &str| item.repeat(n);
    let table = "(table 4 funcref) (elem $e func $f) (func $f)";
    let data = "(memory 1) (data $d \"x\")";
    for (text, why) in [
        (
            module(&format!("{table} (func (table.set (i32.const 0) (ref.func $f)))")),
            NoImage::WrittenTable,
        ),
        (
            module(&format!(
                "{table} (func (drop (table.grow (ref.null func) (i32.const 1))))"
            )),
            NoImage::WrittenTable,
        ),
        (
            module(&format!(
                "{table} (func (table.fill (i32.const 0) (ref.null func) (i32.const 1)))"
            )),
            NoImage::WrittenTable,
        ),
        (
            module(&format!(
                "{table} (func (table.copy (i32.const 0) (i32.const 0) (i32.const 1)))"
            )),
            NoImage::WrittenTable,
        ),
        (
            module(&format!(
                "{table} (func (table.init $e (i32.const 0) (i32.const 0) (i32.const 1)))"
            )),
            NoImage::WrittenTable,
        ),
        (
            module(&format!("{table} (func (elem.drop $e))")),
            NoImage::LateSegment,
        ),
        (
            module(&format!("{data} (func (data.drop $d))")),
            NoImage::LateSegment,
        ),
        (
            module(&format!(
                "{data} (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))"
            )),
            NoImage::LateSegment,
        ),
        (
            module("(global (mut funcref) (ref.null func))"),
            NoImage::ReferenceGlobal,
        ),
        (
            "(component (type $r (resource (rep i32))) (core func (canon resource.new $r)))".into(),
            NoImage::OwnHandles,
        ),
        (
            "(component (component (import \"c\" (component))))".into(),
            NoImage::PassedCode,
        ),
        (
            "(component (component (import \"m\" (core module))))".into(),
            NoImage::PassedCode,
        ),
        (
            "(component (component $o (component $c) (export \"c\" (component $c)))
               (instance $i (instantiate $o)) (alias export $i \"c\" (component)))"
                .into(),
            NoImage::PassedCode,
        ),
        (
            "(component (core module $m) (export \"m\" (core module $m)))".into(),
            NoImage::PassedCode,
        ),
        (
            "(component (component $c) (instance (export \"c\" (component $c))))".into(),
            NoImage::PassedCode,
        ),
        (
            module("(global (export \"skep:g0\") (mut i32) (i32.const 0))"),
            NoImage::TakenName,
        ),
        (
            module("(func (export \"skep:m1\"))"),
            NoImage::TakenName,
        ),
        (
            "(component (component $c) (instance $i (instantiate $c)) (export \"skep-FREEZE0\" (instance $i)))"
                .into(),
            NoImage::TakenName,
        ),
        (
            "(component (import \"skep-handle-x77\" (func)))".into(),
            NoImage::TakenName,
        ),
        (
            "(component (component $c) (instance $i (instantiate $c)) (export \"skep-give-x77\" (instance $i)))"
                .into(),
            NoImage::TakenName,
        ),
        (
            "(component (component (component $c) (instance $i (instantiate $c)) (export \"skep-thaw-me\" (instance $i))))"
                .into(),
            NoImage::TakenName,
        ),
        (
            format!(
                "(component {COUNTER} (component $c (alias outer 1 $counter (core module $m))
                   (core instance (instantiate $m))) {})",
                many(65, "(instance (instantiate $c))")
            ),
            NoImage::TooManyParts,
        ),
        (
            format!("(component {COUNTER} {})", many(65, "(core instance (instantiate $counter))")),
            NoImage::TooManyParts,
        ),
        (
            format!("(component {})", many(501, "(core module)")),
            NoImage::TooManyParts,
        ),
        (
            format!(
                "(component (core module $m {}) (core instance (instantiate $m)))",
                many(10_001, "(global (mut i32) (i32.const 0))")
            ),
            NoImage::TooManyParts,
        ),
    ] {
        let bytes = wat::parse_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(imaged(&bytes).err(), Some(why), "{text:.200}");
        let json = serde_json::to_string(&why).unwrap();
        assert!(json.contains(why.name()) && json.contains("it "), "{json}");
        assert_eq!(serde_json::from_str::<NoImage>(&json).unwrap(), why);
    }
}

#[test]
fn the_largest_that_may_be_still_compile() {
    for text in [
        format!(
            "(component {COUNTER} {})",
            "(core instance (instantiate $counter))".repeat(64)
        ),
        format!(
            "(component (core module $m {}) (core instance (instantiate $m)))",
            "(global (mut i64) (i64.const 0))".repeat(10_000)
        ),
        format!("(component {})", "(core module)".repeat(499)),
    ] {
        let text = format!(
            "{}(core module $last) (core instance (instantiate $last)))",
            &text[..text.len() - 1]
        );
        let bytes = wat::parse_str(&text).unwrap();
        let made = imaged(&bytes);
        let Ok(made) = made else {
            panic!("{made:?}: {text:.100}")
        };
        let counted = count_stack(&made, 1, FEATURES_OF_CODE).unwrap();
        Validator::new_with_features(FEATURES_OF_CODE)
            .validate_all(&counted)
            .unwrap();
    }
}

#[test]
fn a_guest_has_no_pages_of_another_size() {
    for text in [
        "(component (core module (memory 1 1 (pagesize 1))))",
        "(component (core module (memory 1 1 (pagesize 65536))))",
    ] {
        let bytes = wat::parse_str(text).unwrap();
        assert!(with_image(&bytes).is_err(), "{text}");
        assert!(count_stack(&bytes, 1, FEATURES).is_err(), "{text}");
    }
}

#[test]
fn names_that_are_like_the_host_s_are_free() {
    check(
        &component(
            "(core module $m (memory (export \"skep:memory\") 1)
               (global (export \"skep:machine/g#0\") (mut i32) (i32.const 0))
               (func (export \"put\") (param i32) (result i32)
                 (global.set 0 (local.get 0)) (local.get 0))
               (func (export \"look\") (param i32) (result i32) (global.get 0)))
             (core instance $i (instantiate $m))",
        ),
        1,
    );
}

#[test]
fn a_component_without_state_needs_no_image() {
    let bytes = wat::parse_str("(component (core module $m) (core instance (instantiate $m)))");
    let bytes = bytes.unwrap();
    assert_eq!(imaged(&bytes).unwrap(), bytes);
}

#[test]
fn damaged_bytes_never_panic_and_what_is_made_of_them_is_valid() {
    let whole = wat::parse_str(nested()).unwrap();
    let valid = |bytes: &[u8], features| Validator::new_with_features(features).validate_all(bytes);
    let mut rewritten = 0;
    for at in 8..whole.len() {
        for with in [0x01, 0x10, 0x55, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= with;
            // Bodies of functions are not looked into any further: they are validated with what becomes of them.
            if let Ok(Rewritten::Imaged(made)) = with_image(&damaged)
                && valid(&damaged, FEATURES).is_ok()
            {
                valid(&made, FEATURES_OF_CODE).unwrap();
                rewritten += 1;
            }
        }
    }
    assert!(rewritten > 100, "{rewritten}");
    for len in 0..whole.len() {
        let _ = with_image(&whole[..len]);
    }
}
