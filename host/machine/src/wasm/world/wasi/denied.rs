//! Interfaces that may be imported and answer nothing: the environment, terminals, files and sockets. Toolchains link
//! them whether a program uses them or not.
//!
//! The answers follow from the types: an empty list, no value, or the error that means "not allowed". What has no such
//! answer ends the call.

use skep_core::outcome::GuestFault;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem, Type};
use wasmtime::component::{LinkerInstance, ResourceAny, ResourceType, Val};

use crate::wasm::fault::Stop;
use crate::wasm::world::handles::Origin;
use crate::wasm::world::resources::{
    InputStream, IoError, LentSink, LentSource, OutputStream, Pollable,
};
use crate::wasm::world::{Caller, World, charge, define, taken_back};

/// A resource the guest never gets, or gets and can do nothing with.
pub(crate) struct Denied;

/// Cases of an error enumeration that say so, in order of preference.
const REFUSALS: [&str; 3] = ["access-denied", "not-permitted", "access"];

pub(super) fn instance_network(
    linker: &mut LinkerInstance<'_, World>,
    origin: Origin,
) -> wasmtime::Result<()> {
    define(
        linker,
        "instance-network",
        move |mut guest: Caller<'_>, ()| {
            charge(&mut guest, 0)?;
            Ok((guest.data_mut().handles.give::<Denied>(origin, 0),))
        },
    )
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
            ComponentItem::Resource(_) => match name {
                "input-stream" => resource::<InputStream>(linker, name)?,
                "output-stream" => resource::<OutputStream>(linker, name)?,
                "error" => resource::<IoError>(linker, name)?,
                "pollable" => resource::<Pollable>(linker, name)?,
                _ => resource::<Denied>(linker, name)?,
            },
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
        match parameter {
            Val::Resource(lent) => give_back(guest, *lent)?,
            other if holds_handle(other) => guest.data_mut().handles.lose(),
            _ => {}
        }
    }
    for (result, ty) in results.iter_mut().zip(function.results()) {
        *result = refusal(&ty).ok_or(Stop::Fault(GuestFault::ForbiddenImport))?;
    }
    Ok(())
}

/// Whether there is a handle within a value. No function of WASI 0.2 that is refused here takes one so.
fn holds_handle(value: &Val) -> bool {
    match value {
        Val::Resource(_) => true,
        Val::List(values) | Val::Tuple(values) => values.iter().any(holds_handle),
        Val::Record(fields) => fields.iter().any(|(_, value)| holds_handle(value)),
        Val::Option(value) | Val::Variant(_, value) => value.as_deref().is_some_and(holds_handle),
        Val::Result(Ok(value) | Err(value)) => value.as_deref().is_some_and(holds_handle),
        _ => false,
    }
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
            guest.data_mut().forget_pollable(pollable.rep());
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
        let resource = resource.try_into_resource::<T>(&mut *guest)?;
        if resource.owned() {
            guest.data_mut().handles.take_back(resource.rep());
        }
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
fn resource<T: 'static>(
    linker: &mut LinkerInstance<'_, World>,
    name: &str,
) -> wasmtime::Result<()> {
    linker.resource(name, ResourceType::host::<T>(), taken_back)
}
