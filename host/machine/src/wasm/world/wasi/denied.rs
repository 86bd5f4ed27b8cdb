//! Interfaces that may be imported and answer nothing: the environment, terminals, files and sockets. Toolchains link
//! them whether a program uses them or not.
//!
//! The answers follow from the types: an empty list, no value, or the error that means "not allowed". What has no such
//! answer ends the call.

use skep_core::outcome::GuestFault;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem, Type};
use wasmtime::component::{LinkerInstance, Resource, ResourceAny, ResourceType, Val};

use crate::wasm::fault::Stop;
use crate::wasm::world::resources::{
    InputStream, IoError, LentSink, LentSource, OutputStream, Pollable,
};
use crate::wasm::world::{Caller, World, charge, define};

/// A resource the guest never gets, or gets and can do nothing with.
pub(super) struct Denied;

/// Cases of an error enumeration that say so, in order of preference.
const REFUSALS: [&str; 3] = ["access-denied", "not-permitted", "access"];

pub(super) fn instance_network(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "instance-network", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<Denied>::new_own(0),))
    })
}

pub(super) fn link(
    engine: &wasmtime::Engine,
    imported: &ComponentInstance,
    linker: &mut LinkerInstance<'_, World>,
) -> wasmtime::Result<()> {
    for (name, item) in imported.exports(engine) {
        match item.ty {
            ComponentItem::ComponentFunc(_) => {
                linker.func_new_async(name, |mut guest, function, parameters, results| {
                    let refused = refuse(&mut guest, &function, parameters, results);
                    let pause = guest.data_mut().pause();
                    Box::new(async move {
                        pause.await;
                        refused
                    })
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

fn refuse(
    guest: &mut Caller<'_>,
    function: &ComponentFunc,
    parameters: &[Val],
    results: &mut [Val],
) -> wasmtime::Result<()> {
    charge(guest, 0)?;
    // What was lent must be given back, or the guest's call fails instead of being refused.
    for parameter in parameters {
        if let Val::Resource(lent) = parameter {
            give_back(guest, *lent)?;
        }
    }
    for (result, ty) in results.iter_mut().zip(function.results()) {
        *result = refusal(&ty).ok_or(Stop::Fault(GuestFault::ForbiddenImport))?;
    }
    Ok(())
}

/// Gives back what was lent, or frees what was given. Wasmtime's own way of it would take one more stack, in case a guest has
/// something to do at the end of its resource; these are the host's, and only pollables have anything to be done at theirs.
fn give_back(guest: &mut Caller<'_>, resource: ResourceAny) -> wasmtime::Result<()> {
    let is_done = is_given_back::<Denied>(guest, resource)?
        || is_given_back::<InputStream>(guest, resource)?
        || is_given_back::<OutputStream>(guest, resource)?
        || is_given_back::<IoError>(guest, resource)?
        || pollable_is_given_back(guest, resource)?
        || is_given_back::<LentSink>(guest, resource)?
        || is_given_back::<LentSource>(guest, resource)?;
    match is_done {
        true => Ok(()),
        false => Err(Stop::Fault(GuestFault::ForbiddenImport).into()),
    }
}

fn pollable_is_given_back(guest: &mut Caller<'_>, resource: ResourceAny) -> wasmtime::Result<bool> {
    let is_it = resource.ty() == ResourceType::host::<Pollable>();
    if is_it {
        let pollable = resource.try_into_resource::<Pollable>(&mut *guest)?;
        if pollable.owned() {
            guest.data_mut().pollables.remove(pollable.rep());
        }
    }
    Ok(is_it)
}

fn is_given_back<T: 'static>(
    guest: &mut Caller<'_>,
    resource: ResourceAny,
) -> wasmtime::Result<bool> {
    let is_it = resource.ty() == ResourceType::host::<T>();
    if is_it {
        resource.try_into_resource::<T>(guest)?;
    }
    Ok(is_it)
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
