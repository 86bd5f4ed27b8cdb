//! How far a call runs before it lets others go first.
//!
//! Fuel bounds every call, the same on every replica; it may be minutes. A guest runs on a stack of its own, and comes back from
//! there each time it has used up a slice of its fuel: then its call is pending, and whoever polls it may poll others first, or drop
//! it if nobody waits any more. Wasmtime counts the fuel anyway, so nothing is added to the guest's code, and no fuel is used. What
//! an import takes sets wasmtime's way to the end of the slice anew, so imports count for themselves.

use std::pin::Pin;
use std::task::{Context, Poll};

use skep_drive::SLICE;
use wasmtime::Store;

use crate::wasm::fault::Failure;

#[cfg(test)]
thread_local! {
    /// That of machines that start on this thread.
    pub(crate) static LENGTH: std::cell::Cell<u64> = const { std::cell::Cell::new(SLICE) };
}

#[cfg(not(test))]
fn length() -> u64 {
    SLICE
}

#[cfg(test)]
fn length() -> u64 {
    LENGTH.get()
}

/// The slice that a call is in, as its imports see it.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    length: u64,
    /// Fuel that was left when it began.
    began: u64,
    /// Fuel that was left when wasmtime was last told.
    told: u64,
    is_over: bool,
}

impl Slice {
    /// Has calls in the store come back after each slice; from now on they are asynchronous.
    pub(crate) fn watch<T>(store: &mut Store<T>) -> Result<(), Failure> {
        Ok(store.fuel_async_yield_interval(Some(length()))?)
    }

    /// The first one of a call with so much fuel.
    pub(crate) fn first(fuel: u64) -> Self {
        Self {
            length: length(),
            began: fuel,
            told: fuel,
            is_over: false,
        }
    }

    /// An import found so much fuel, and has left so much.
    pub(crate) fn spend(&mut self, found: u64, left: u64) {
        let since = self.told.saturating_sub(found);
        if since >= self.length {
            // The guest itself has come back, at the end of each.
            self.began = found.saturating_add(since % self.length);
        }
        self.told = left;
        self.is_over |= self.began.saturating_sub(left) >= self.length;
    }

    /// Whether imports have used it up. The next one begins.
    pub(crate) fn take_end(&mut self) -> bool {
        if self.is_over {
            self.began = self.told;
        }
        std::mem::take(&mut self.is_over)
    }
}

/// Is pending once, if at all.
pub(crate) struct Pause(pub(crate) bool);

impl Future for Pause {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match std::mem::take(&mut self.0) {
            true => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            false => Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use wasmtime::{Instance, Module, Trap};

    use super::*;
    use crate::wasm::Engine;

    /// Computes in a loop with calls, and moves bytes at a unit of fuel each.
    const GUEST: &str = r#"(module (memory 1)
        (func $f (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
        (func (export "run") (param i32) (result i32) (local $i i32)
          (loop $l
            (local.set $i (call $f (local.get $i)))
            (memory.fill (i32.const 0) (i32.const 7) (i32.const 5000))
            (br_if $l (i32.lt_u (local.get $i) (local.get 0))))
          (local.get $i)))"#;

    /// Runs it with so much fuel: what it did, the fuel that is left, and how often it came back before its end.
    fn run(module: &Module, fuel: u64, slice: Option<u64>) -> (Result<i32, Trap>, u64, usize) {
        let mut store = Store::new(module.engine(), ());
        store.set_fuel(fuel).unwrap();
        store.fuel_async_yield_interval(slice).unwrap();
        let mut slices = 0;
        let ran = {
            let run = async {
                let instance = Instance::new_async(&mut store, module, &[]).await?;
                let run = instance.get_typed_func::<i32, i32>(&mut store, "run")?;
                run.call_async(&mut store, 1000).await
            };
            let mut run = pin!(run);
            let mut context = Context::from_waker(Waker::noop());
            loop {
                match run.as_mut().poll(&mut context) {
                    Poll::Ready(ran) => break ran,
                    Poll::Pending => slices += 1,
                }
            }
        };
        let ran = ran.map_err(|error| *error.downcast_ref().unwrap());
        (ran, store.get_fuel().unwrap(), slices)
    }

    /// What a machine may do is counted in fuel alone, and the same wherever it comes back.
    // P-41
    #[test]
    fn coming_back_uses_no_fuel() {
        let engine = Engine::new().unwrap();
        let module = Module::new(engine.inner(), wat::parse_str(GUEST).unwrap()).unwrap();
        let most = 10_000_000;
        let (ran, left, slices) = run(&module, most, None);
        assert_eq!((ran, slices), (Ok(1000), 0));
        let needed = most - left;
        assert!(needed > 5_000_000, "{needed}");
        // The guest asks at its loops and calls whether it has used all.
        let around = (needed - 40..=needed + 1).chain([most, needed / 2, 1, 0]);
        let mut ends = Vec::new();
        for fuel in around {
            let (ran, left, _) = run(&module, fuel, None);
            for slice in [1_000, 77_777, needed / 3, SLICE] {
                let (ran_so, left_so, slices) = run(&module, fuel, Some(slice));
                assert_eq!((ran_so, left_so), (ran, left), "{fuel} by {slice}");
                assert_eq!(slices > 0, fuel > slice, "{fuel} by {slice}: {slices}");
            }
            ends.push(ran);
        }
        assert!(ends.contains(&Ok(1000)) && ends.contains(&Err(Trap::OutOfFuel)));
    }

    #[test]
    fn imports_and_the_guest_together_use_up_a_slice() {
        let mut left = 100 * SLICE;
        let mut slice = Slice::first(left);
        // The guest uses so much before each import, and the import so much itself.
        let mut ends = |guest: u64, import: u64, calls: u64| -> u64 {
            let ends = (0..calls).map(|_| {
                let found = left - guest;
                left = found - import;
                slice.spend(found, left);
                u64::from(slice.take_end())
            });
            ends.sum()
        };
        assert_eq!(ends(0, SLICE / 10, 100), 10);
        assert_eq!(ends(SLICE / 10, SLICE / 10, 100), 20);
        assert_eq!(ends(SLICE / 2, 0, 4), 2);
        // It comes back by itself, and its imports do not have it come back again.
        assert_eq!(ends(2 * SLICE, 0, 5), 0);
        assert_eq!(ends(SLICE + SLICE / 2, 0, 4), 0);
        assert_eq!(ends(0, 4 * SLICE, 3), 3);
    }
}
