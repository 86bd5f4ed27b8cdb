//! Runs the calls of a machine, and ends them when its group has gone from this node.
//!
//! Fuel bounds every call, the same on every replica; it may be minutes. Nobody waits any more for a machine that was let go,
//! so its node need not. A guest runs on a stack of its own, and comes back from there each time it has used so much fuel, to
//! see whether to go on. Wasmtime counts the fuel anyway, so nothing is added to the guest's code, and no fuel is used. What an
//! import takes sets the way to the next look anew, so each import looks as well.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use wasmtime::Store;

use crate::wasm::fault::{Failure, Stop};
use crate::{Interrupter, LocalCode};

/// Fuel between two looks, about 10 ms.
const FUEL_PER_LOOK: u64 = 10_000_000;

/// Whether the calls of one machine are to end, in all of its instances.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    has_come: AtomicBool,
}

impl Ending {
    /// Has calls in the store come back now and then; from now on they are for [`run`](Self::run).
    pub(crate) fn watch<T>(store: &mut Store<T>) -> Result<(), Failure> {
        Ok(store.fuel_async_yield_interval(Some(FUEL_PER_LOOK))?)
    }

    /// Runs a call to its end on this thread, or until the machine's end has come.
    pub(crate) fn run<T>(
        &self,
        call: impl Future<Output = wasmtime::Result<T>>,
    ) -> Result<T, Failure> {
        let mut call = pin!(call);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            // A call that has begun is dropped with it, and unwinds.
            self.look().map_err(wasmtime::Error::from)?;
            if let Poll::Ready(ran) = call.as_mut().poll(&mut context) {
                return Ok(ran?);
            }
        }
    }

    /// Fails when the machine's end has come.
    pub(crate) fn look(&self) -> Result<(), Stop> {
        match self.has_come.load(Relaxed) {
            false => Ok(()),
            true => Err(Stop::Local {
                code: LocalCode::Interrupted,
                reason: "its group has gone from this node".into(),
            }),
        }
    }
}

impl Interrupter for Ending {
    fn interrupt(&self) {
        self.has_come.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
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
    fn run(module: &Module, fuel: u64, per_look: Option<u64>) -> (Result<i32, Trap>, u64, usize) {
        let mut store = Store::new(module.engine(), ());
        store.set_fuel(fuel).unwrap();
        store.fuel_async_yield_interval(per_look).unwrap();
        let mut looks = 0;
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
                    Poll::Pending => looks += 1,
                }
            }
        };
        let ran = ran.map_err(|error| *error.downcast_ref().unwrap());
        (ran, store.get_fuel().unwrap(), looks)
    }

    /// What a machine may do is counted in fuel alone, and the same wherever it comes back.
    // P-41
    #[test]
    fn looking_up_uses_no_fuel() {
        let engine = Engine::new().unwrap();
        let module = Module::new(engine.inner(), wat::parse_str(GUEST).unwrap()).unwrap();
        let most = 10_000_000;
        let (ran, left, looks) = run(&module, most, None);
        assert_eq!((ran, looks), (Ok(1000), 0));
        let needed = most - left;
        assert!(needed > 5_000_000, "{needed}");
        // The guest asks at its loops and calls whether it has used all.
        let around = (needed - 40..=needed + 1).chain([most, needed / 2, 1, 0]);
        let mut ends = Vec::new();
        for fuel in around {
            let (ran, left, _) = run(&module, fuel, None);
            for per_look in [1_000, 77_777, needed / 3, FUEL_PER_LOOK] {
                let (ran_so, left_so, looks) = run(&module, fuel, Some(per_look));
                assert_eq!((ran_so, left_so), (ran, left), "{fuel} by {per_look}");
                assert_eq!(looks > 0, fuel > per_look, "{fuel} by {per_look}: {looks}");
            }
            ends.push(ran);
        }
        assert!(ends.contains(&Ok(1000)) && ends.contains(&Err(Trap::OutOfFuel)));
    }

    #[test]
    fn a_call_that_is_let_go_is_not_begun() {
        let ending = Ending::default();
        assert_eq!(ending.run(async { Ok(1) }).unwrap(), 1);
        ending.interrupt();
        let mut begun = false;
        let ran = ending.run(async {
            begun = true;
            Ok(())
        });
        let interrupted = matches!(
            ran,
            Err(Failure::Local {
                code: LocalCode::Interrupted,
                ..
            })
        );
        assert!(interrupted && !begun);
    }
}
