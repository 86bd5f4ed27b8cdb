//! What a guest waits for.

use skep_core::outcome::GuestFault;

use super::clock::Clock;
use super::kept::Instant;
use crate::wasm::fault::Stop;

/// Pollables alive at once in one instance.
pub(super) const MAX_POLLABLES: usize = 1024;

/// The pollables of an instance, numbered the same way on every replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pollables {
    instants: Vec<Option<u64>>,
    free: Vec<u32>,
}

impl Pollables {
    /// The number of one more.
    pub(super) fn push(&mut self, instant: u64) -> Result<u32, Stop> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.instants.len() < MAX_POLLABLES => {
                self.instants.push(None);
                self.instants.len() as u32 - 1
            }
            None => return Err(Stop::Fault(GuestFault::Limit)),
        };
        self.instants[number as usize] = Some(instant);
        Ok(number)
    }

    /// All of it, written down.
    pub(super) fn keep(&self) -> (Vec<Instant>, Vec<u32>) {
        let instants = self.instants.iter().map(|at| Instant { at: *at });
        (instants.collect(), self.free.clone())
    }

    /// As others were that were kept.
    pub(super) fn resume(&mut self, kept: &[Instant], free: &[u32]) {
        self.instants = kept.iter().map(|instant| instant.at).collect();
        self.free = free.to_vec();
    }

    pub(super) fn instant(&self, number: u32) -> Result<u64, Stop> {
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
    pub(super) fn poll(&self, clock: &mut Clock, numbers: &[u32]) -> Result<Vec<u32>, Stop> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_passes_time_to_the_first_instant_and_no_further() {
        let mut pollables = Pollables::default();
        let [late, early, same] = [300, 200, 200].map(|instant| pollables.push(instant).unwrap());
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
        let never = pollables.push(u64::MAX).unwrap();
        let mut clock = Clock::default();
        assert!(matches!(
            pollables.poll(&mut clock, &[never]),
            Err(Stop::Fault(GuestFault::ForbiddenImport))
        ));
        pollables.remove(never);
        pollables.remove(never);
        assert_eq!(pollables.push(1).unwrap(), never);
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
