//! What is a machine and what is not, and why.

use skep_machine::wasm::{
    Cache, Component, ComponentError, InProcess, MAX_COMPONENT_BYTES, MAX_FUNCTION_TARGETS,
    MAX_FUNCTIONS, MAX_MERGES, MAX_TARGETS, inspect,
};

use crate::guest::{ENGINE, FULL, PLAIN, text};

fn compile(text: &str) -> Result<Component, ComponentError> {
    Component::compile(&ENGINE, &wat::parse_str(text).unwrap())
}

#[test]
fn an_inspection_tells_what_is_in_a_component() {
    let full = FULL.inspection();
    assert!(full.interfaces.initializer && full.interfaces.queries && full.interfaces.batch);
    let plain = PLAIN.inspection();
    assert!(!plain.interfaces.initializer && !plain.interfaces.queries && !plain.interfaces.batch);
    assert_ne!(full.id, plain.id);
    assert!(plain.imports.contains(&"wasi:io/poll@0.2.6".to_owned()));
    assert_eq!(plain.exports, ["skep:machine/state-machine@0.1.0"]);
    assert!(plain.functions > 10);
    let json = serde_json::to_string(plain).unwrap();
    assert_eq!(
        serde_json::from_str::<skep_machine::wasm::Inspection>(&json).unwrap(),
        *plain
    );

    let kv = inspect(skep_examples::KV).unwrap();
    assert!(kv.interfaces.queries && kv.interfaces.batch);
    assert!(
        kv.producers
            .iter()
            .any(|producer| producer.name == "wit-component"),
        "{:?}",
        kv.producers
    );
}

#[test]
fn what_is_no_component_is_refused_for_what_it_is() {
    assert!(matches!(inspect(b""), Err(ComponentError::NotWasm)));
    assert!(matches!(
        inspect(b"#!/bin/sh\n"),
        Err(ComponentError::NotWasm)
    ));
    assert!(matches!(
        inspect(&wat::parse_str("(module)").unwrap()),
        Err(ComponentError::CoreModule)
    ));
    assert!(matches!(
        inspect(&vec![0; MAX_COMPONENT_BYTES + 1]),
        Err(ComponentError::TooLarge { .. })
    ));
    let empty = inspect(&wat::parse_str("(component)").unwrap());
    assert!(
        matches!(empty, Err(ComponentError::MissingExport { .. })),
        "{empty:?}"
    );
    let other =
        "(component (instance $i) (export \"skep:machine/state-machine@0.2.0\" (instance $i)))";
    assert!(matches!(
        inspect(&wat::parse_str(other).unwrap()),
        Err(ComponentError::MissingExport { .. })
    ));
}

#[test]
fn a_component_cut_anywhere_is_refused_without_a_panic() {
    let whole = wat::parse_str(text(&[], "", "0")).unwrap();
    for len in (4..whole.len()).step_by(7).chain([whole.len() - 1]) {
        let error = inspect(&whole[..len]).unwrap_err();
        // Cut between two sections it is a whole component of less.
        assert!(
            matches!(error, ComponentError::Truncated { size } if size == len)
                || matches!(
                    error,
                    ComponentError::MissingExport { .. }
                        | ComponentError::Invalid(_)
                        | ComponentError::NotWasm
                ),
            "{len}: {error}"
        );
    }
    let cut = skep_examples::KV.len() / 2;
    assert!(matches!(
        inspect(&skep_examples::KV[..cut]),
        Err(ComponentError::Truncated { .. })
    ));
}

#[test]
fn damaged_bytes_never_panic() {
    let whole = wat::parse_str(text(&[], "", "0")).unwrap();
    for at in (8..whole.len()).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        // Either it still reads, or it is refused: compiling it is the same question.
        let _ = inspect(&damaged);
    }
}

// P-35
#[test]
fn foreign_imports_are_refused_by_name() {
    for (import, why) in [
        ("wasi:http/types@0.2.3", "network"),
        ("wasi:keyvalue/store@0.2.0", "every replica"),
        ("wasi:cli/exit@0.3.0", "WASI 0.2"),
        ("acme:shop/cart@1.2.3", "knows only"),
        ("skep:machine/kv@0.1.0", "no such interface"),
    ] {
        let text = format!(
            "(component (import \"{import}\" (instance)) (import \"wasi:cli/exit@0.2.0\" (instance)))"
        );
        let error = inspect(&wat::parse_str(text).unwrap()).unwrap_err();
        assert!(
            matches!(error, ComponentError::ForeignImport { .. }),
            "{error}"
        );
        assert!(
            error.to_string().contains(import) && error.to_string().contains(why),
            "{error}"
        );
        assert!(
            !error.to_string().contains("wasi:cli/exit@0.2.0"),
            "{error}"
        );
    }
    let error =
        inspect(&wat::parse_str("(component (import \"run\" (func)))").unwrap()).unwrap_err();
    assert!(error.to_string().contains("`run`"), "{error}");
}

#[test]
fn features_that_replicas_could_disagree_on_are_refused() {
    for module in [
        "(module (memory 1 1 shared))",
        "(module (memory i64 1))",
        // What the host writes down of a guest has pages of this size.
        "(module (memory 1 1 (pagesize 1)))",
        "(module (func (result v128) (i32x4.relaxed_trunc_f32x4_s (v128.const i64x2 0 0))))",
        "(module (tag))",
    ] {
        let error =
            inspect(&wat::parse_str(format!("(component (core {}", &module[1..]) + ")").unwrap())
                .unwrap_err();
        assert!(
            matches!(error, ComponentError::Invalid(_)),
            "{module}: {error}"
        );
    }
}

#[test]
fn too_many_functions_are_refused_before_they_are_compiled() {
    let functions = "(func)".repeat(MAX_FUNCTIONS as usize + 1);
    let bytes = wat::parse_str(format!("(component (core module {functions}))")).unwrap();
    assert!(matches!(
        inspect(&bytes),
        Err(ComponentError::TooManyFunctions { .. })
    ));
}

#[test]
fn functions_that_compilers_take_very_long_for_are_refused_before_they_are_compiled() {
    let module = |functions: String| {
        wat::parse_str(format!("(component (core module {functions}))")).unwrap()
    };
    let blocks = |blocks: u64, locals: usize| {
        let (locals, blocks) = ("i32 ".repeat(locals), "(block)".repeat(blocks as usize));
        module(format!("(func (local {locals}) {blocks})"))
    };
    let table = |targets: u64| {
        let targets = "0 ".repeat(targets as usize);
        format!("(func (br_table {targets} (i32.const 0)))")
    };
    // The largest that may be are refused for what they lack only.
    for good in [
        blocks(MAX_MERGES / 1000, 1000),
        module(table(MAX_FUNCTION_TARGETS)),
        module(table(MAX_TARGETS / 8).repeat(8)),
    ] {
        let error = inspect(&good).unwrap_err();
        assert!(
            matches!(error, ComponentError::MissingExport { .. }),
            "{error}"
        );
    }
    for (bad, most) in [
        (blocks(MAX_MERGES / 1000 + 1, 1000), MAX_MERGES),
        (
            module(table(MAX_FUNCTION_TARGETS + 1)),
            MAX_FUNCTION_TARGETS,
        ),
        (module(table(MAX_TARGETS / 8 + 1).repeat(8)), MAX_TARGETS),
    ] {
        let error = inspect(&bad).unwrap_err();
        assert!(
            matches!(error, ComponentError::TooIntricate { limit, .. } if limit == most),
            "{error}"
        );
    }
}

#[test]
fn a_component_of_another_shape_does_not_fit() {
    let renamed = text(&[], "", "0").replace(
        "(export \"save\" (func $save))",
        "(export \"safe\" (func $save))",
    );
    let error = compile(&renamed).unwrap_err();
    assert!(
        matches!(&error, ComponentError::Mismatch(what) if what.contains("`save`")),
        "{error}"
    );

    let other_type = text(&[], "", "0").replace(
        "(export \"save\" (func $save))",
        "(export \"save\" (func $restore))",
    );
    let error = compile(&other_type).unwrap_err();
    assert!(
        matches!(&error, ComponentError::Mismatch(what) if what.contains("`save`")),
        "{error}"
    );

    let other_import = text(&[], "", "0").replace(
        "(export \"next-u64\" (func (result u64)))",
        "(export \"next-u64\" (func (result s64)))",
    );
    let error = compile(&other_import).unwrap_err();
    assert!(
        matches!(&error, ComponentError::Mismatch(what) if what.contains("next-u64")),
        "{error}"
    );
}

#[test]
fn a_component_that_cannot_describe_itself_is_refused() {
    let error = compile(&text(&[], "unreachable", "0")).unwrap_err();
    assert!(
        matches!(&error, ComponentError::Describe(what) if what.contains("unreachable")),
        "{error}"
    );
}

// P-37
#[test]
fn a_cached_component_is_the_same_machine_and_a_tampered_one_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let bytes = wat::parse_str(text(&[], "", "0")).unwrap();
    let first = Component::load(&ENGINE, &bytes, &cache, &InProcess).unwrap();
    let artefact = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap() != "key")
        .unwrap();
    let kept = std::fs::read(&artefact).unwrap();

    let second = Component::load(&ENGINE, &bytes, &cache, &InProcess).unwrap();
    assert_eq!(
        (first.id(), first.descriptor()),
        (second.id(), second.descriptor())
    );

    std::fs::write(&artefact, &kept[..kept.len() / 2]).unwrap();
    let third = Component::load(&ENGINE, &bytes, &cache, &InProcess).unwrap();
    assert_eq!(third.descriptor(), first.descriptor());
    let mended = std::fs::read(&artefact).unwrap();
    assert!(mended.len() > kept.len() / 2);
    Component::load(&ENGINE, &bytes, &cache, &InProcess).unwrap();
    assert_eq!(
        std::fs::read(&artefact).unwrap(),
        mended,
        "compiled a third time"
    );
}
