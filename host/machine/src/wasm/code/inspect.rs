//! Reading a component before it is compiled: what it is, what it wants, and why it cannot be a machine.

use serde::{Deserialize, Serialize};
use skep_core::id::ComponentId;
use wasmparser::{
    Chunk, ComponentExternalKind, ComponentTypeRef, Encoding, KnownCustom, Parser, Payload,
    Validator,
};

use super::complexity::Complexity;
use super::expansion::{Expansion, Size, Uncounted};
use super::freeze::NoImage;
use super::rewriting::refusal;
use crate::wasm::engine::FEATURES;
use crate::wasm::error::ComponentError;
use crate::wasm::world::imports::Import;

/// The largest component, in bytes. Python with its standard library is 18 MiB.
pub const MAX_COMPONENT_BYTES: usize = 64 << 20;

/// The most functions of a component. A small file of very many functions is how a compiler is kept busy for minutes;
/// the JavaScript engine has about 20,000.
pub const MAX_FUNCTIONS: u32 = 65_536;

/// Producers that are reported; a component says what it likes there.
const MAX_PRODUCERS: usize = 64;
/// Characters of one name or version that a component gives itself.
const MAX_NAME_CHARS: usize = 200;

/// What can be known of a component without running it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspection {
    /// Its name: the sha256 of its bytes.
    pub id: ComponentId,
    /// Its size in bytes.
    pub size: u64,
    /// Core functions in it.
    pub functions: u32,
    /// Linear memories it becomes when it is put together.
    #[serde(default)]
    pub memories: u64,
    /// Why a node cannot take its memories and globals for all of its state. None if it can.
    #[serde(default)]
    pub no_image: Option<NoImage>,
    /// Interfaces it imports, as it names them.
    pub imports: Vec<String>,
    /// Interfaces and functions it exports.
    pub exports: Vec<String>,
    /// Optional interfaces among them.
    pub interfaces: Interfaces,
    /// What it was made with, by its own word.
    pub producers: Vec<Producer>,
}

/// The optional interfaces of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Interfaces {
    /// Takes configuration bytes at the creation of its group.
    pub initializer: bool,
    /// Answers queries.
    pub queries: bool,
    /// Takes the commands of an entry in one call.
    pub batch: bool,
}

/// One line of a component's `producers` section.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Producer {
    /// `language`, `processed-by` or `sdk`.
    pub field: String,
    /// Name of the language or tool.
    pub name: String,
    /// Its version; may be empty.
    pub version: String,
}

/// Reads and validates `bytes` as a machine's component; takes time linear in their length and runs nothing.
///
/// # Errors
///
/// Every way in which the bytes are not a machine for this host: see [`ComponentError`].
pub fn inspect(bytes: &[u8]) -> Result<Inspection, ComponentError> {
    measure(bytes).map(|(inspection, _)| inspection)
}

/// As [`inspect`], with what the component becomes when it is put together.
pub(crate) fn measure(bytes: &[u8]) -> Result<(Inspection, Size), ComponentError> {
    if bytes.len() > MAX_COMPONENT_BYTES {
        return Err(ComponentError::TooLarge {
            size: bytes.len(),
            limit: MAX_COMPONENT_BYTES,
        });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(ComponentError::NotWasm);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(ComponentError::CoreModule);
    }

    let mut found = Found::default();
    let mut expansion = Expansion::default();
    let mut complexity = Complexity::default();
    let mut validator = Validator::new_with_features(FEATURES);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| broken(bytes, &error))?;
        // Counted first, so that too much is refused before it is validated.
        expansion.read(&payload).map_err(|error| match error {
            Uncounted::Refused(error) => error,
            Uncounted::Broken(error) => broken(bytes, &error),
        })?;
        found
            .read(&payload)
            .map_err(|error| broken(bytes, &error))?;
        if found.functions > MAX_FUNCTIONS {
            return Err(ComponentError::TooManyFunctions {
                limit: MAX_FUNCTIONS,
            });
        }
        if let wasmparser::ValidPayload::Func(function, body) = validator
            .payload(&payload)
            .map_err(|error| broken(bytes, &error))?
        {
            let mut function = function.into_validator(std::mem::take(&mut found.allocations));
            function
                .validate(&body)
                .map_err(|error| broken(bytes, &error))?;
            complexity
                .read(&body, function.len_locals())
                .map_err(|error| broken(bytes, &error))??;
            found.allocations = function.into_allocations();
        }
    }
    let size = expansion.size();
    let inspection = Inspection {
        memories: size.memories,
        no_image: refusal(bytes).map_err(|error| ComponentError::Invalid(error.to_string()))?,
        ..found.into_inspection(bytes)?
    };
    Ok((inspection, size))
}

fn broken(bytes: &[u8], error: &wasmparser::Error) -> ComponentError {
    if is_cut(bytes) {
        return ComponentError::Truncated { size: bytes.len() };
    }
    ComponentError::Invalid(error.to_string())
}

/// Whether the last section says that it is longer than what is left: the parser's own errors do not tell.
fn is_cut(bytes: &[u8]) -> bool {
    let mut parser = Parser::new(0);
    let mut rest = bytes;
    loop {
        match parser.parse(rest, false) {
            Ok(Chunk::NeedMoreData(_)) => return true,
            Ok(Chunk::Parsed { consumed, payload }) => {
                let nested = match &payload {
                    Payload::ModuleSection {
                        unchecked_range, ..
                    }
                    | Payload::ComponentSection {
                        unchecked_range, ..
                    } => unchecked_range.len(),
                    _ => 0,
                };
                let Some(after) = rest.get(consumed + nested..) else {
                    return true;
                };
                if after.is_empty() {
                    return false;
                }
                rest = after;
            }
            Err(_) => return false,
        }
    }
}

/// What the sections said so far.
#[derive(Default)]
struct Found {
    /// Components around the section being read: only the outermost one's imports are the machine's.
    levels: Vec<Encoding>,
    functions: u32,
    imports: Vec<(String, bool)>,
    exports: Vec<(String, ComponentExternalKind)>,
    producers: Vec<Producer>,
    allocations: wasmparser::FuncValidatorAllocations,
}

impl Found {
    fn read(&mut self, payload: &Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::Version { encoding, .. } => self.levels.push(*encoding),
            Payload::End(_) => {
                self.levels.pop();
            }
            Payload::FunctionSection(functions) => {
                self.functions = self.functions.saturating_add(functions.count())
            }
            Payload::ComponentImportSection(imports) if self.levels.len() == 1 => {
                for import in imports.clone() {
                    let import = import?;
                    let is_instance = matches!(import.ty, ComponentTypeRef::Instance(_));
                    self.imports
                        .push((import.name.name.to_owned(), is_instance));
                }
            }
            Payload::ComponentExportSection(exports) if self.levels.len() == 1 => {
                for export in exports.clone() {
                    let export = export?;
                    self.exports
                        .push((export.name.name.to_owned(), export.kind));
                }
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Producers(producers) = section.as_known() {
                    // A custom section means nothing; a broken one is no reason to refuse a component.
                    let _ = self.producers(producers);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn producers(
        &mut self,
        section: wasmparser::ProducersSectionReader<'_>,
    ) -> wasmparser::Result<()> {
        for field in section {
            let field = field?;
            for value in field.values {
                let value = value?;
                let cut = |text: &str| {
                    text.chars()
                        .filter(|c| !c.is_control())
                        .take(MAX_NAME_CHARS)
                        .collect()
                };
                let producer = Producer {
                    field: cut(field.name),
                    name: cut(value.name),
                    version: cut(value.version),
                };
                if self.producers.len() < MAX_PRODUCERS && !self.producers.contains(&producer) {
                    self.producers.push(producer);
                }
            }
        }
        Ok(())
    }

    fn into_inspection(self, bytes: &[u8]) -> Result<Inspection, ComponentError> {
        let foreign = self
            .imports
            .iter()
            .filter_map(|(name, is_instance)| {
                let known = if *is_instance {
                    Import::named(name).map(|_| ())
                } else {
                    Err("it is not an interface")
                };
                known.err().map(|why| format!("`{name}` ({why})"))
            })
            .collect::<Vec<_>>();
        if !foreign.is_empty() {
            return Err(ComponentError::ForeignImport {
                imports: foreign.join(", "),
            });
        }

        let has = |interface: &str| {
            self.exports.iter().any(|(name, kind)| {
                *kind == ComponentExternalKind::Instance
                    && name
                        .strip_prefix("skep:machine/")
                        .and_then(|rest| rest.split_once('@'))
                        .is_some_and(|(exported, version)| {
                            exported == interface && version.starts_with("0.1.")
                        })
            })
        };
        if !has("state-machine") {
            return Err(ComponentError::MissingExport {
                export: "skep:machine/state-machine@0.1.0",
            });
        }
        let interfaces = Interfaces {
            initializer: has("initializer"),
            queries: has("queries"),
            batch: has("batch"),
        };
        let mut producers = self.producers;
        producers.sort();
        Ok(Inspection {
            id: ComponentId::of(bytes),
            size: bytes.len() as u64,
            functions: self.functions,
            memories: 0,
            no_image: None,
            imports: self.imports.into_iter().map(|(name, _)| name).collect(),
            exports: self.exports.into_iter().map(|(name, _)| name).collect(),
            interfaces,
            producers,
        })
    }
}
