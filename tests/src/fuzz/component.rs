//! Bytes as a component: inspection, and compiling what inspection lets through.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, ComponentError, Engine, Inspection, MAX_FUNCTIONS, inspect,
};

/// Components above this are inspected and not compiled, to keep a run short.
const COMPILED_BYTES: usize = 16 << 10;
/// What a component says of itself is cut to these.
const PRODUCERS: usize = 64;
const NAME_CHARS: usize = 200;

static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().expect("this node runs Wasm"));

/// Inspects the bytes, and compiles what may be a machine.
///
/// # Panics
/// If either panics, disagrees with the other, fails for a reason that is not the bytes' own, or reports more than its
/// limits.
pub fn run(data: &[u8]) {
    let inspection = match inspect(data) {
        Ok(inspection) => inspection,
        Err(error) => return its_own(&error),
    };
    assert_eq!(inspect(data).expect("it was inspected before"), inspection);
    assert_eq!(inspection.id.0, <[u8; 32]>::from(Sha256::digest(data)));
    assert_eq!(inspection.size, data.len() as u64);
    assert!(inspection.functions <= MAX_FUNCTIONS);
    assert!(inspection.producers.len() <= PRODUCERS);
    for producer in &inspection.producers {
        for text in [&producer.field, &producer.name, &producer.version] {
            assert!(text.chars().count() <= NAME_CHARS && !text.contains(char::is_control));
        }
    }
    let json = serde_json::to_vec(&inspection).expect("plain values");
    let again: Inspection = serde_json::from_slice(&json).expect("its own JSON");
    assert_eq!(again, inspection);
    if data.len() <= COMPILED_BYTES {
        compile(data, &inspection);
    }
}

fn its_own(error: &ComponentError) {
    assert!(
        !matches!(
            error,
            ComponentError::Engine(_) | ComponentError::Cache { .. }
        ),
        "{error}"
    );
    assert!(!error.to_string().is_empty());
}

/// With a stack like that of the threads that run machines: `describe` is called.
fn compile(data: &[u8], inspection: &Inspection) {
    let work = || match Component::compile(&ENGINE, data) {
        Ok(component) => assert_eq!(component.inspection(), inspection),
        Err(error) => {
            its_own(&error);
            let refused_late = matches!(
                error,
                ComponentError::Invalid(_)
                    | ComponentError::Mismatch(_)
                    | ComponentError::Describe(_)
            );
            assert!(refused_late, "inspection let it through, then: {error}");
        }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(APPLY_THREAD_STACK_BYTES);
        let compiled = thread.spawn_scoped(scope, work).expect("a thread").join();
        if let Err(panic) = compiled {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A machine with and without its optional interfaces, and what is not one.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    const OPTIONAL: [&str; 3] = [
        "(instance $i (export \"init\" (func $init))) (export \"skep:machine/initializer@0.1.0\" (instance $i))",
        "(instance $q (export \"query\" (func $query))) (export \"skep:machine/queries@0.1.0\" (instance $q))",
        "(instance $b (export \"apply-batch\" (func $apply-batch))) (export \"skep:machine/batch@0.1.0\" (instance $b))",
    ];
    let guest = |optional: &str, describe: &str| {
        include_str!("../../../host/machine/tests/machine/guest.wat")
            .replace("⟨optional⟩", optional)
            .replace("⟨describe⟩", describe)
            .replace("⟨too-many⟩", "0")
    };
    let component = |name: &str, text: &str| {
        let bytes = wat::parse_str(text).expect("a sound text");
        (name.to_owned(), bytes)
    };
    let full = component("full", &guest(&OPTIONAL.concat(), ""));
    let cut = full.1[..full.1.len() / 2].to_vec();
    vec![
        full,
        component("plain", &guest("", "")),
        component("describe-traps", &guest("", "(unreachable)")),
        component("describe-loops", &guest("", "(loop $again (br $again))")),
        component("core-module", "(module (func (export \"f\")))"),
        component("empty", "(component)"),
        component(
            "foreign-import",
            "(component (import \"wasi:http/types@0.2.3\" (instance)))",
        ),
        component(
            "only-in-name",
            "(component (instance $i) (export \"skep:machine/state-machine@0.1.0\" (instance $i)))",
        ),
        ("cut".to_owned(), cut),
        ("script".to_owned(), b"#!/bin/sh\n".to_vec()),
    ]
}
