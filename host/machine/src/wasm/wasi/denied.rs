//! Interfaces that may be imported and answer nothing: the environment, terminals, files and sockets. Toolchains link
//! them whether a program uses them or not.
//!
//! The answers follow from the types: an empty list, no value, or the error that means "not allowed". What has no such
//! answer ends the call.

use skep_core::outcome::GuestFault;
use wasmtime::component::types::{ComponentInstance, ComponentItem, Type};
use wasmtime::component::{LinkerInstance, Resource, ResourceType, Val};

use super::io::{InputStream, IoError, OutputStream, Pollable};
use crate::wasm::fault::Stop;
use crate::wasm::host::{Guest, Host, charge};

/// A resource the guest never gets, or gets and can do nothing with.
pub(super) struct Denied;

/// Cases of an error enumeration that say so, in order of preference.
const REFUSALS: [&str; 3] = ["access-denied", "not-permitted", "access"];

pub(super) fn instance_network(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("instance-network", |mut guest: Guest<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<Denied>::new_own(0),))
    })
}

pub(super) fn link(
    engine: &wasmtime::Engine,
    imported: &ComponentInstance,
    linker: &mut LinkerInstance<'_, Host>,
) -> wasmtime::Result<()> {
    for (name, item) in imported.exports(engine) {
        match item.ty {
            ComponentItem::ComponentFunc(_) => {
                linker.func_new(name, |mut guest, function, parameters, results| {
                    charge(&mut guest, 0)?;
                    // What was lent must be given back, or the guest's call fails instead of being refused.
                    for parameter in parameters {
                        if let Val::Resource(lent) = parameter {
                            lent.resource_drop(&mut guest)?;
                        }
                    }
                    for (result, ty) in results.iter_mut().zip(function.results()) {
                        *result = refusal(&ty).ok_or(Stop::Fault(GuestFault::ForbiddenImport))?;
                    }
                    Ok(())
                })?
            }
            ComponentItem::Resource(_) => {
                linker.resource(name, resource_type(name), |_, _| Ok(()))?
            }
            _ => {}
        }
    }
    Ok(())
}

fn refusal(ty: &Type) -> Option<Val> {
    match ty {
        Type::List(_) => Some(Val::List(Vec::new())),
        Type::Option(_) => Some(Val::Option(None)),
        Type::Result(result) => {
            let Some(Type::Enum(error)) = result.err() else {
                return None;
            };
            let refusal = REFUSALS
                .iter()
                .find(|refusal| error.names().any(|name| name == **refusal))?;
            Some(Val::Result(Err(Some(Box::new(Val::Enum(
                (*refusal).into(),
            ))))))
        }
        _ => None,
    }
}

/// Interfaces name resources of `wasi:io` as their own; they must stay the same type.
fn resource_type(name: &str) -> ResourceType {
    match name {
        "input-stream" => ResourceType::host::<InputStream>(),
        "output-stream" => ResourceType::host::<OutputStream>(),
        "error" => ResourceType::host::<IoError>(),
        "pollable" => ResourceType::host::<Pollable>(),
        _ => ResourceType::host::<Denied>(),
    }
}
