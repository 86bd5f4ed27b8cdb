//! `wasi:io`: waiting that takes no time, and streams that end in the log.

use skep_core::outcome::GuestFault;
use wasmtime::component::{ComponentType, LinkerInstance, Lower, Resource, ResourceType};

use crate::wasm::fault::Stop;
use crate::wasm::host::{Clock, Guest, Host, charge};

/// `io/error.error`: no stream here ever fails with one.
pub(super) struct IoError;
/// `io/streams.input-stream`: standard input, closed.
pub(super) struct InputStream;
/// `io/streams.output-stream`: standard output or error, by its number.
pub(super) struct OutputStream;
/// `io/poll.pollable`: an instant of virtual time.
pub(super) struct Pollable;

/// Number of the standard output.
pub(super) const STDOUT: u32 = 1;
/// Number of the standard error.
pub(super) const STDERR: u32 = 2;

/// Bytes an output stream says it can take at once. A constant: it is an input to the guest.
const WRITABLE: u64 = 64 << 10;

/// Pollables alive at once in one instance.
const MAX_POLLABLES: usize = 1024;

/// The pollables of an instance, numbered the same way on every replica.
#[derive(Debug, Default)]
pub(in crate::wasm) struct Pollables {
    instants: Vec<Option<u64>>,
    free: Vec<u32>,
}

impl Pollables {
    pub(super) fn push(&mut self, instant: u64) -> Result<Resource<Pollable>, Stop> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.instants.len() < MAX_POLLABLES => {
                self.instants.push(None);
                self.instants.len() as u32 - 1
            }
            None => return Err(Stop::Fault(GuestFault::Limit)),
        };
        self.instants[number as usize] = Some(instant);
        Ok(Resource::new_own(number))
    }

    fn instant(&self, number: u32) -> Result<u64, Stop> {
        self.instants
            .get(number as usize)
            .copied()
            .flatten()
            .ok_or(Stop::Fault(GuestFault::Malformed))
    }

    pub(super) fn remove(&mut self, number: u32) {
        if self
            .instants
            .get_mut(number as usize)
            .and_then(Option::take)
            .is_some()
        {
            self.free.push(number);
        }
    }

    /// Indices of the ready ones. If none is, time passes until the first is.
    fn poll(&self, clock: &mut Clock, numbers: &[u32]) -> Result<Vec<u32>, Stop> {
        let instants = numbers
            .iter()
            .map(|number| self.instant(*number))
            .collect::<Result<Vec<_>, _>>()?;
        let first = instants
            .iter()
            .min()
            .ok_or(Stop::Fault(GuestFault::Malformed))?;
        if *first > clock.peek() {
            clock.advance_to(*first)?;
        }
        let ready = instants
            .iter()
            .enumerate()
            .filter(|(_, instant)| **instant <= clock.peek());
        Ok(ready.map(|(at, _)| at as u32).collect())
    }
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[allow(dead_code, reason = "a case of the interface that no stream here uses")]
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

pub(super) fn error(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.resource("error", ResourceType::host::<IoError>(), |_, _| Ok(()))?;
    linker.func_wrap(
        "[method]error.to-debug-string",
        |mut guest: Guest<'_>, (_,): (Resource<IoError>,)| {
            charge(&mut guest, 0)?;
            Ok((String::new(),))
        },
    )
}

pub(super) fn poll(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.resource(
        "pollable",
        ResourceType::host::<Pollable>(),
        |mut guest, number| {
            guest.data_mut().pollables.remove(number);
            Ok(())
        },
    )?;
    linker.func_wrap(
        "[method]pollable.ready",
        |mut guest: Guest<'_>, (pollable,): (Resource<Pollable>,)| {
            charge(&mut guest, 0)?;
            let host = guest.data();
            Ok((host.pollables.instant(pollable.rep())? <= host.clock.peek(),))
        },
    )?;
    linker.func_wrap(
        "[method]pollable.block",
        |mut guest: Guest<'_>, (pollable,): (Resource<Pollable>,)| {
            charge(&mut guest, 0)?;
            let host = guest.data_mut();
            host.pollables.poll(&mut host.clock, &[pollable.rep()])?;
            Ok(())
        },
    )?;
    linker.func_wrap(
        "poll",
        |mut guest: Guest<'_>, (pollables,): (Vec<Resource<Pollable>>,)| {
            charge(&mut guest, pollables.len() as u64 * 8)?;
            let numbers = pollables.iter().map(Resource::rep).collect::<Vec<_>>();
            let host = guest.data_mut();
            Ok((host.pollables.poll(&mut host.clock, &numbers)?,))
        },
    )
}

pub(super) fn streams(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    input(linker)?;
    output(linker)
}

fn input(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.resource(
        "input-stream",
        ResourceType::host::<InputStream>(),
        |_, _| Ok(()),
    )?;
    for name in [
        "[method]input-stream.read",
        "[method]input-stream.blocking-read",
    ] {
        linker.func_wrap(
            name,
            |mut guest: Guest<'_>, (_, _): (Resource<InputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
            },
        )?;
    }
    for name in [
        "[method]input-stream.skip",
        "[method]input-stream.blocking-skip",
    ] {
        linker.func_wrap(
            name,
            |mut guest: Guest<'_>, (_, _): (Resource<InputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Err::<u64, _>(StreamError::Closed),))
            },
        )?;
    }
    linker.func_wrap(
        "[method]input-stream.subscribe",
        |mut guest: Guest<'_>, (_,): (Resource<InputStream>,)| {
            charge(&mut guest, 0)?;
            Ok((guest.data_mut().pollables.push(0)?,))
        },
    )
}

fn output(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.resource(
        "output-stream",
        ResourceType::host::<OutputStream>(),
        |_, _| Ok(()),
    )?;
    linker.func_wrap(
        "[method]output-stream.check-write",
        |mut guest: Guest<'_>, (_,): (Resource<OutputStream>,)| {
            charge(&mut guest, 0)?;
            Ok((Ok::<_, StreamError>(WRITABLE),))
        },
    )?;
    for name in [
        "[method]output-stream.write",
        "[method]output-stream.blocking-write-and-flush",
    ] {
        linker.func_wrap(
            name,
            |mut guest: Guest<'_>, (stream, bytes): (Resource<OutputStream>, Vec<u8>)| {
                charge(&mut guest, bytes.len() as u64)?;
                let log = &mut guest.data_mut().log;
                if stream.rep() == STDERR {
                    log.stderr(&bytes);
                } else {
                    log.stdout(&bytes);
                }
                Ok((Ok::<_, StreamError>(()),))
            },
        )?;
    }
    for name in [
        "[method]output-stream.flush",
        "[method]output-stream.blocking-flush",
    ] {
        linker.func_wrap(
            name,
            |mut guest: Guest<'_>, (_,): (Resource<OutputStream>,)| {
                charge(&mut guest, 0)?;
                Ok((Ok::<_, StreamError>(()),))
            },
        )?;
    }
    // Zeroes say nothing in a log.
    for name in [
        "[method]output-stream.write-zeroes",
        "[method]output-stream.blocking-write-zeroes-and-flush",
    ] {
        linker.func_wrap(
            name,
            |mut guest: Guest<'_>, (_, _): (Resource<OutputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Ok::<_, StreamError>(()),))
            },
        )?;
    }
    // The only input there is has ended.
    for name in [
        "[method]output-stream.splice",
        "[method]output-stream.blocking-splice",
    ] {
        linker.func_wrap(
            name,
            |mut guest: Guest<'_>,
             (_, _, _): (Resource<OutputStream>, Resource<InputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Err::<u64, _>(StreamError::Closed),))
            },
        )?;
    }
    linker.func_wrap(
        "[method]output-stream.subscribe",
        |mut guest: Guest<'_>, (_,): (Resource<OutputStream>,)| {
            charge(&mut guest, 0)?;
            Ok((guest.data_mut().pollables.push(0)?,))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_passes_time_to_the_first_instant_and_no_further() {
        let mut pollables = Pollables::default();
        let [late, early, same] =
            [300, 200, 200].map(|instant| pollables.push(instant).unwrap().rep());
        let mut clock = Clock::default();
        assert_eq!(
            pollables.poll(&mut clock, &[late, early, same]).unwrap(),
            [1, 2]
        );
        assert_eq!(clock.peek(), 200);
        assert_eq!(pollables.poll(&mut clock, &[late, early]).unwrap(), [1]);
        assert!(matches!(
            pollables.poll(&mut clock, &[]),
            Err(Stop::Fault(GuestFault::Malformed))
        ));
    }

    #[test]
    fn waiting_for_ever_is_refused_and_numbers_are_used_again() {
        let mut pollables = Pollables::default();
        let never = pollables.push(u64::MAX).unwrap().rep();
        let mut clock = Clock::default();
        assert!(matches!(
            pollables.poll(&mut clock, &[never]),
            Err(Stop::Fault(GuestFault::ForbiddenImport))
        ));
        pollables.remove(never);
        pollables.remove(never);
        assert_eq!(pollables.push(1).unwrap().rep(), never);
        assert!(matches!(
            pollables.instant(7),
            Err(Stop::Fault(GuestFault::Malformed))
        ));
        for _ in 1..MAX_POLLABLES {
            pollables.push(1).unwrap();
        }
        assert!(matches!(
            pollables.push(1),
            Err(Stop::Fault(GuestFault::Limit))
        ));
    }
}
