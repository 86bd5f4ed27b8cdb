//! The one place where an engine is configured. Two replicas may only run one machine if every line here is the same.

pub(super) mod budget;
pub(super) mod holdings;
pub(super) mod layout;

use std::num::NonZeroUsize;
use std::sync::Arc;

use wasmparser::WasmFeatures;
use wasmtime::{
    Config, Inlining, OperatorCost, OptLevel, Strategy, VariableOperatorCost, WasmBacktraceDetails,
};

use self::budget::{MachineBudget, Purpose};
use self::holdings::Holdings;
use self::layout::{GUEST_STACK_BYTES, Layout, MAX_WASM_STACK};
use super::error::ComponentError;

/// Stack of a thread on which a machine is called, or a component compiled, in bytes. Native machines and the compiler have it to
/// themselves: guests have stacks of their own.
pub const APPLY_THREAD_STACK_BYTES: usize = 2 * MAX_WASM_STACK;

/// Frames of a guest's backtrace that are kept for the node's log. They are never part of an outcome.
const BACKTRACE_FRAMES: usize = 20;

/// What a guest may use of WebAssembly: everything stable whose meaning is a function of its inputs. Threads, relaxed
/// SIMD and anything asynchronous are not; garbage collection, exceptions and 64-bit memories are not needed by any
/// toolchain that was tried.
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::COMPONENT_MODEL);

/// What a component may use that the host has rewritten: also memories whose pages are a byte, which hold what the host writes
/// down of a guest's globals. A page of that size is how the host knows them, so no guest may have any.
pub(crate) const FEATURES_OF_CODE: WasmFeatures = FEATURES.union(WasmFeatures::CUSTOM_PAGE_SIZES);

/// Fuel of one page of `memory.grow`: about what zeroing 64 KiB costs. Wasmtime's own table takes nothing for it.
const FUEL_PER_GROWN_PAGE: u8 = 255;

/// Compiles and runs components, always under the same rules. Cheap to clone; one for each process is enough.
#[derive(Clone)]
pub struct Engine {
    roomy: wasmtime::Engine,
    compact: wasmtime::Engine,
    /// Which of the two.
    layout: Layout,
    budget: Arc<MachineBudget>,
    /// What components are made for.
    purpose: Purpose,
}

impl Engine {
    /// The engine of this build. Fails if this processor lacks an instruction that every replica must have
    /// (x86-64-v2: SSE4.2 and POPCNT, which x86 servers have had since 2009), or on a target wasmtime cannot run on.
    pub fn new() -> Result<Self, ComponentError> {
        Self::with_budget(Holdings::of_this_system())
    }

    /// As [`new`](Self::new), for machines that may hold so much together.
    ///
    /// # Errors
    /// [`ComponentError::Engine`].
    pub fn with_budget(most: Holdings) -> Result<Self, ComponentError> {
        let engine = |layout| {
            config(layout)
                .and_then(|config| wasmtime::Engine::new(&config))
                .map_err(|error| ComponentError::Engine(format!("{error:#}")))
        };
        Ok(Self {
            roomy: engine(Layout::ROOMY)?,
            compact: engine(Layout::COMPACT)?,
            layout: Layout::ROOMY,
            budget: MachineBudget::new(most),
            purpose: Purpose::New,
        })
    }

    /// The same engine, for components that are made for this: each is started once, to describe itself.
    pub fn made_for(&self, purpose: Purpose) -> Self {
        Self {
            purpose,
            ..self.clone()
        }
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// What its machines hold together, and may.
    pub fn budget(&self) -> &Arc<MachineBudget> {
        &self.budget
    }

    /// The same rules, with memories laid out as suits a component of so many memories. It depends on the component alone, and code
    /// compiled for one layout does not load for another.
    pub(crate) fn suited(&self, memories: u64) -> Self {
        Self {
            layout: Layout::for_memories(memories),
            ..self.clone()
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn inner(&self) -> &wasmtime::Engine {
        match self.layout {
            Layout::ROOMY => &self.roomy,
            _ => &self.compact,
        }
    }

    /// Both, whichever this one is.
    pub(crate) fn both(&self) -> [&wasmtime::Engine; 2] {
        [&self.roomy, &self.compact]
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

fn config(layout: Layout) -> wasmtime::Result<Config> {
    let mut config = Config::new();

    // One machine code for all replicas: naming the target switches the detection of the processor off.
    config.target(env!("SKEP_MACHINE_TARGET"))?;
    enable_instructions(&mut config)?;
    config.strategy(Strategy::Cranelift);
    config.cranelift_opt_level(OptLevel::Speed);
    config.compiler_inlining(Inlining::No);
    config.parallel_compilation(true);

    // What a program means: every bit set by hand, so that a new default of wasmtime cannot move it.
    config.wasm_features(FEATURES_OF_CODE, true);
    config.wasm_features(WasmFeatures::all().difference(FEATURES_OF_CODE), false);
    config.wasm_branch_hinting(false);
    config.relaxed_simd_deterministic(true);
    config.cranelift_nan_canonicalization(true);
    config.shared_memory(false);

    // How long it may run: fuel counts the same on every replica, clocks do not.
    config.consume_fuel(true);
    config.operator_cost(OperatorCost {
        variable: VariableOperatorCost {
            memory_copy_per_byte: 1,
            memory_fill_per_byte: 1,
            memory_init_per_byte: 1,
            memory_grow_per_page: FUEL_PER_GROWN_PAGE,
            table_copy_per_element: 1,
            table_fill_per_element: 1,
            table_init_per_element: 1,
            table_grow_per_element: 1,
            ..VariableOperatorCost::new()
        },
        ..OperatorCost::new()
    });
    config.epoch_interruption(false);
    config.concurrency_support(false);

    // Where it runs.
    config.memory_reservation(layout.reservation);
    config.memory_reservation_for_growth(layout.growth);
    config.memory_guard_size(layout.guard);
    config.guard_before_linear_memory(true);
    config.memory_may_move(layout.growth > 0);
    config.max_wasm_stack(MAX_WASM_STACK);
    config.async_stack_size(GUEST_STACK_BYTES);
    config.memory_init_cow(true);
    config.signals_based_traps(true);

    // What is said of a failure, to the node's log only.
    config.wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES));
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config.generate_address_map(true);
    config.debug_info(false);
    Ok(config)
}

#[cfg(target_arch = "x86_64")]
fn enable_instructions(config: &mut Config) -> wasmtime::Result<()> {
    let missing = [
        ("sse3", is_x86_feature_detected!("sse3")),
        ("ssse3", is_x86_feature_detected!("ssse3")),
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("popcnt", is_x86_feature_detected!("popcnt")),
    ]
    .into_iter()
    .filter_map(|(name, present)| (!present).then_some(name))
    .collect::<Vec<_>>();
    if !missing.is_empty() {
        wasmtime::bail!(
            "this processor lacks {}, which Skep compiles machines for",
            missing.join(", ")
        );
    }
    for flag in [
        "has_sse3",
        "has_ssse3",
        "has_sse41",
        "has_sse42",
        "has_popcnt",
    ] {
        // SAFETY: the flags only allow instructions that were just seen to exist on this processor, and wasmtime checks
        // them again before it runs any code.
        unsafe { config.cranelift_flag_enable(flag) };
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn enable_instructions(_: &mut Config) -> wasmtime::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: a change here is a change of what every deployed machine means.
    #[test]
    fn the_engine_has_exactly_the_features_that_were_chosen() {
        let engine = Engine::new().unwrap();
        let features = engine.inner().get_wasm_features();
        assert_eq!(features, FEATURES_OF_CODE);
        // The host's own, in what it adds to a component: guests are validated without it.
        assert_eq!(
            features.difference(FEATURES),
            WasmFeatures::CUSTOM_PAGE_SIZES
        );
        let names = features
            .iter_names()
            .map(|(name, _)| name)
            .collect::<Vec<_>>();
        assert_eq!(
            names,
            [
                "MUTABLE_GLOBAL",
                "SATURATING_FLOAT_TO_INT",
                "SIGN_EXTENSION",
                "REFERENCE_TYPES",
                "MULTI_VALUE",
                "BULK_MEMORY",
                "SIMD",
                "TAIL_CALL",
                "FLOATS",
                "MULTI_MEMORY",
                "EXTENDED_CONST",
                "COMPONENT_MODEL",
                "CUSTOM_PAGE_SIZES",
            ]
        );
    }

    #[test]
    fn the_engine_has_the_settings_that_replicas_agree_on() {
        let engine = Engine::new().unwrap();
        let engine = engine.inner();
        assert!(engine.get_consume_fuel());
        assert!(!engine.get_epoch_interruption());
        assert!(!engine.get_concurrency_support());
        assert_eq!(engine.get_cranelift_nan_canonicalization(), Some(true));
        assert!(engine.get_relaxed_simd_deterministic());
        assert_eq!(engine.get_max_wasm_stack(), MAX_WASM_STACK);
        assert_eq!(engine.get_async_stack_size(), GUEST_STACK_BYTES);
        assert_eq!(
            engine.get_target().as_deref(),
            Some(env!("SKEP_MACHINE_TARGET"))
        );
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            engine
                .get_cranelift_flags_enabled()
                .collect::<std::collections::BTreeSet<_>>(),
            [
                "has_popcnt",
                "has_sse3",
                "has_sse41",
                "has_sse42",
                "has_ssse3"
            ]
            .into()
        );
    }
}
