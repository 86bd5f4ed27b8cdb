//! The seam between a component and its machine code: who compiles, and with what at stake.
//!
//! A compiler takes far more from some components than from others of the same size, and none can be told to stop. In
//! this process that is a risk for all who live in it, so a server has it done in another process; see
//! [`Compiler`].

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::expansion::size_of;
use super::rewriting;
use crate::wasm::engine::Engine;
use crate::wasm::error::CompileError;
use crate::wasm::fault::is_of_memory;

/// Makes machine code of a component. Where it is made in another process, that process runs this very build.
///
/// # Safety
///
/// What [`compile`](Self::compile) returns is run as it is. It must be what [`InProcess`] returned for these bytes, here or in a
/// process whose engine has the same [`fingerprint`](Engine::fingerprint).
pub unsafe trait Compiler: Send + Sync {
    /// The machine code of a component that passed [`inspect`](crate::wasm::inspect()). Blocks until it is there; a compiler that has
    /// a deadline ends by then.
    ///
    /// # Errors
    /// See [`CompileError`].
    fn compile(&self, engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileError>;

    /// What one compilation may take at most: a refusal is weighed again when that is more.
    fn allowance(&self) -> Allowance;
}

/// What one compilation may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Allowance {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Milliseconds from start to end.
    pub milliseconds: u64,
}

impl Allowance {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        memory_bytes: u64::MAX,
        milliseconds: u64::MAX,
    };

    /// Whether something is allowed here that was not there.
    pub fn exceeds(&self, other: &Self) -> bool {
        self.memory_bytes > other.memory_bytes || self.milliseconds > other.milliseconds
    }

    /// The time as a duration.
    pub fn time(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// Compiles on the calling thread and the threads of the compiler, for as long as it takes: for programs that do nothing
/// else, and for components that are trusted.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

// SAFETY: it is the definition.
unsafe impl Compiler for InProcess {
    fn compile(&self, engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        let invalid = |error: &dyn std::fmt::Display| CompileError::Invalid(error.to_string());
        let size = size_of(component).map_err(|error| invalid(&error))?;
        let engine = engine.suited(size.memories);
        let rewritten =
            rewriting::rewrite(component, size.scopes).map_err(|error| invalid(&error))?;
        let made = engine.inner().precompile_component(&rewritten);
        made.map_err(|error| match is_of_memory(&error) {
            true => CompileError::Local(format!("{error:#}")),
            false => CompileError::Invalid(format!("{error:#}")),
        })
    }

    fn allowance(&self) -> Allowance {
        Allowance::UNLIMITED
    }
}

impl Engine {
    /// What machine code depends on besides its component: the compiler, its settings, and the rewriting before it. Code of one
    /// fingerprint means nothing to an engine of another.
    pub fn fingerprint(&self) -> [u8; 32] {
        use std::hash::Hash;
        let mut settings = Digester(Sha256::new());
        for engine in self.both() {
            engine.precompile_compatibility_hash().hash(&mut settings);
        }
        rewriting::VERSION.hash(&mut settings);
        settings.0.finalize().into()
    }
}

/// SHA-256 behind the standard library's hashing, whose own hashers may change between releases.
struct Digester(Sha256);

impl std::hash::Hasher for Digester {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest
            .iter()
            .take(8)
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    }
}
