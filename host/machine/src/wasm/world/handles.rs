//! Which handles of the host's resources an instance has, as far as the host can see it.

use wasmtime::component::Resource;

/// The handles that an instance was given and has not given back.
///
/// Which number a guest is given for a handle depends on all that it was given before. The host cannot read or write the table that
/// wasmtime keeps of them, so another instance has the same table only if nothing is left of what was in this one: all was given
/// back, the last first.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// In the order in which they were given: the kind, and the host's number.
    given: Vec<(&'static str, u32)>,
    /// They were given back in another order, or nobody can tell.
    tangled: bool,
    /// The guest was lent a handle for the call, and may give it back at any time of it.
    lent: bool,
}

impl Handles {
    /// A handle for the guest.
    pub(crate) fn give<T: 'static>(&mut self, number: u32) -> Resource<T> {
        let handle = (std::any::type_name::<T>(), number);
        // Of two that look alike nobody could tell which one comes back.
        self.tangled |= self.lent || self.given.contains(&handle);
        if !self.tangled {
            self.given.push(handle);
        }
        Resource::new_own(number)
    }

    /// The guest has given a handle back.
    pub(crate) fn take_back<T: 'static>(&mut self, number: u32) {
        self.tangled |= self.given.pop() != Some((std::any::type_name::<T>(), number));
    }

    /// Begins or ends a call that a handle is lent for.
    pub(crate) fn lend(&mut self, lent: bool) {
        self.lent = lent;
    }

    /// Whether the guest's table is as it was at the start of the instance.
    pub(crate) fn are_none(&self) -> bool {
        self.given.is_empty() && !self.tangled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::world::resources::{OutputStream, Pollable};

    #[test]
    fn what_is_given_back_the_last_first_leaves_nothing() {
        let mut handles = Handles::default();
        assert!(handles.are_none());
        handles.give::<OutputStream>(1);
        handles.give::<Pollable>(0);
        assert!(!handles.are_none());
        handles.take_back::<Pollable>(0);
        handles.take_back::<OutputStream>(1);
        assert!(handles.are_none());
    }

    #[test]
    fn another_order_is_never_forgotten() {
        let give_and_take = |give: [u32; 2], take: [u32; 2]| {
            let mut handles = Handles::default();
            for number in give {
                let _ = handles.give::<Pollable>(number);
            }
            for number in take {
                handles.take_back::<Pollable>(number);
            }
            handles.are_none()
        };
        assert!(give_and_take([0, 1], [1, 0]));
        assert!(!give_and_take([0, 1], [0, 1]));
        // They are alike, and may have come back in any order.
        assert!(!give_and_take([1, 1], [1, 1]));
    }

    #[test]
    fn what_is_given_beside_a_lent_handle_is_not_told_apart() {
        let mut handles = Handles::default();
        handles.lend(true);
        handles.give::<Pollable>(0);
        handles.take_back::<Pollable>(0);
        handles.lend(false);
        assert!(!handles.are_none());
    }
}
