use wasmtime::{Instance, Module, Store, Trap, TypedFunc};

use super::*;
use crate::ToEnd;
use crate::wasm::Engine;

mod keepers;

const PAGE: u32 = 64 << 10;

const GUEST: &str = r#"(module (memory (export "m") 2 2000)
    (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
    (func (export "set") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
    (func (export "size") (result i32) (memory.size))
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))"#;

/// An instance of the guest, run to the end of each call.
struct Guest {
    store: Store<()>,
    instance: Instance,
    memory: Arc<Memory>,
    captures: Vec<Arc<Capture>>,
    is_fork: bool,
}

fn engines() -> [Engine; 2] {
    let engine = Engine::new().unwrap();
    [engine.suited(1), engine.suited(9)]
}

impl Guest {
    fn start(engine: &Engine) -> Self {
        let module = Module::new(engine.inner(), wat::parse_str(GUEST).unwrap()).unwrap();
        let mut store = Store::new(engine.inner(), ());
        store.set_fuel(u64::MAX).unwrap();
        let mut memories = Vec::new();
        let start = collecting(&mut memories, Instance::new_async(&mut store, &module, &[]));
        let instance = start.to_end().unwrap();
        Self {
            store,
            instance,
            memory: memories.pop().unwrap(),
            captures: Vec::new(),
            is_fork: false,
        }
    }

    fn fork(engine: &Engine, of: &Self) -> Self {
        let mut fork = Self::start(engine);
        fork.memory.fork_of(&of.memory).unwrap();
        fork.is_fork = true;
        fork.follow(of);
        fork
    }

    fn follow(&mut self, of: &Self) {
        self.memory.follow(&of.memory).unwrap();
        let has = self.memory.bytes() as u32 / PAGE;
        assert_eq!(self.grow(0), Ok(has as i32), "{NOT_TOLD}");
        let more = of.memory.bytes() as u32 / PAGE - has;
        assert_eq!(self.grow(more), Ok(has as i32));
    }

    fn call<P: wasmtime::WasmParams + Sync, R: wasmtime::WasmResults + Sync>(
        &mut self,
        name: &str,
        with: P,
    ) -> Result<R, Trap> {
        let function: TypedFunc<P, R> =
            self.instance.get_typed_func(&mut self.store, name).unwrap();
        let memories = [Arc::clone(&self.memory)];
        let watched = Watched {
            forks: if self.is_fork { &memories } else { &[] },
            captures: &self.captures,
        };
        let call = running(watched, function.call_async(&mut self.store, with));
        call.to_end()
            .map_err(|error| *error.downcast_ref().unwrap())
    }

    fn get(&mut self, at: u32) -> Result<i32, Trap> {
        self.call("get", at as i32)
    }

    fn set(&mut self, at: u32, value: i32) -> Result<(), Trap> {
        self.call("set", (at as i32, value))
    }

    fn grow(&mut self, pages: u32) -> Result<i32, Trap> {
        self.call("grow", pages as i32)
    }

    fn capture(&mut self) -> Captured {
        let captured = self.memory.capture().unwrap();
        self.captures = vec![Arc::clone(captured.capture())];
        captured
    }

    /// Some bytes of each page.
    fn has(&self) -> Vec<u8> {
        self.memory
            .read(|bytes| bytes.iter().step_by(512).copied().collect())
    }
}

// P-18
#[test]
fn a_fork_is_what_it_was_forked_from_whatever_it_did_before() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        machine.set(4096, 1).unwrap();
        let mut fork = Guest::fork(&engine, &machine);
        assert_eq!(fork.get(4096), Ok(1));
        fork.set(4096, 2).unwrap();
        fork.set(PAGE, 3).unwrap();
        assert_eq!((fork.get(4096), fork.get(PAGE)), (Ok(2), Ok(3)));
        // Nothing of it comes to the machine, and what the machine does comes to the fork.
        assert_eq!((machine.get(4096), machine.get(PAGE)), (Ok(1), Ok(0)));
        machine.set(4096, 4).unwrap();
        machine.set(8, 5).unwrap();
        fork.follow(&machine);
        assert_eq!(fork.has(), machine.has());
        assert_eq!(
            (fork.get(4096), fork.get(PAGE), fork.get(8)),
            (Ok(4), Ok(0), Ok(5))
        );
    }
}

#[test]
fn a_fork_may_write_more_pages_than_are_counted() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        assert_eq!(machine.grow(70), Ok(2));
        let mut fork = Guest::fork(&engine, &machine);
        for pages in [
            OWN_PAGES_KEPT,
            OWN_PAGES_KEPT + 1,
            OWN_PAGES_MAX,
            OWN_PAGES_MAX + 1,
            2 * OWN_PAGES_MAX,
        ] {
            for page in 0..pages as u32 {
                fork.set(page * 4096, -1).unwrap();
                machine.set(page * 4096 + 8, pages as i32).unwrap();
                assert_eq!(fork.get(page * 4096), Ok(-1));
            }
            fork.follow(&machine);
            assert!(fork.has() == machine.has(), "{pages}");
        }
    }
}

#[test]
fn a_fork_grows_with_the_machine() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        let mut fork = Guest::fork(&engine, &machine);
        fork.set(0, 9).unwrap();
        // Where it has more than 1,024 pages it moves, in the compact layout.
        for to in [3, 100, 190, 1100] {
            let from = machine.memory.bytes() as u32 / PAGE;
            assert_eq!(machine.grow(to - from), Ok(from as i32));
            machine.set(to * PAGE - 4, to as i32).unwrap();
            fork.follow(&machine);
            assert_eq!(fork.get(to * PAGE - 4), Ok(to as i32));
            assert_eq!(fork.get(to * PAGE), Err(Trap::MemoryOutOfBounds));
            assert!(fork.has() == machine.has());
        }
        // What it has beyond the machine is its own, until it follows.
        let end = 1100 * PAGE;
        assert_eq!(fork.grow(1), Ok(1100));
        fork.set(end, 7).unwrap();
        assert_eq!(machine.grow(1), Ok(1100));
        machine.set(end + 4, 8).unwrap();
        assert_eq!((fork.get(end), fork.get(end + 4)), (Ok(7), Ok(0)));
        fork.follow(&machine);
        assert!(fork.has() == machine.has());
    }
}

/// What an update of wasmtime would break, in words for who makes it.
const NOT_TOLD: &str = "wasmtime no longer looks at the size of a memory when `memory.grow` is executed with 0: a fork that has \
    grown cannot become smaller any more, so `Memory::follow` must refuse it, and it must be made anew";

#[test]
fn wasmtime_learns_the_size_of_a_memory_by_growing_it_by_nothing() {
    for engine in engines() {
        let machine = Guest::start(&engine);
        let mut fork = Guest::fork(&engine, &machine);
        assert_eq!(fork.grow(3), Ok(2));
        let size = |fork: &mut Guest| fork.call::<(), i32>("size", ());
        fork.memory.follow(&machine.memory).unwrap();
        assert_eq!(fork.memory.bytes(), 2 * PAGE as usize);
        // It knows nothing of it yet, and whoever relied on that would meet what is not there.
        assert_eq!(size(&mut fork), Ok(5));
        assert_eq!(fork.get(3 * PAGE), Err(Trap::MemoryOutOfBounds));
        assert_eq!(fork.grow(0), Ok(2), "{NOT_TOLD}");
        assert_eq!(size(&mut fork), Ok(2), "{NOT_TOLD}");
    }
}

#[test]
fn a_fork_that_has_grown_gives_it_back_and_finds_zeroes_when_it_grows_again() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        machine.set(8, 1).unwrap();
        let mut fork = Guest::fork(&engine, &machine);
        // In the compact layout it moves where it has more than 1,024. Some write more pages than are counted.
        for (round, more) in [1, 2, 40, 3, 1100, 1, 1200, 2].into_iter().enumerate() {
            let has = machine.memory.bytes() as u32 / PAGE;
            assert_eq!(fork.grow(more), Ok(has as i32), "{round}");
            let end = (has + more) * PAGE;
            for at in (has * PAGE..end).step_by(4096 * more as usize) {
                assert_eq!(fork.get(at), Ok(0), "{round} {at}");
                fork.set(at, -1).unwrap();
            }
            for page in 0..round as u32 * 150 {
                fork.set(page * 4096 % (has * PAGE), -1).unwrap();
            }
            assert_eq!(fork.get(end), Err(Trap::MemoryOutOfBounds));
            machine.set(8, round as i32).unwrap();
            if round % 2 == 1 {
                assert_eq!(machine.grow(1), Ok(has as i32));
                machine.set(has * PAGE + 12, round as i32).unwrap();
            }
            fork.follow(&machine);
            assert!(fork.has() == machine.has(), "{round}");
            let end = machine.memory.bytes() as u32;
            for at in [end - 3, end, (has + more + 1) * PAGE, 3000 * PAGE] {
                assert_eq!(fork.get(at), Err(Trap::MemoryOutOfBounds), "{round} {at}");
                assert_eq!(fork.set(at, 1), Err(Trap::MemoryOutOfBounds));
            }
        }
    }
}

#[test]
fn what_a_fork_has_grown_by_is_the_machine_s_where_the_machine_has_grown_as_well() {
    for engine in engines() {
        for (fork_grows, machine_grows) in [(1, 3), (3, 1), (2, 2)] {
            let mut machine = Guest::start(&engine);
            let mut fork = Guest::fork(&engine, &machine);
            assert_eq!(fork.grow(fork_grows), Ok(2));
            fork.set(2 * PAGE + 8, 5).unwrap();
            assert_eq!(machine.grow(machine_grows), Ok(2));
            machine.set(2 * PAGE + 4, 6).unwrap();
            for value in [7, 8] {
                fork.follow(&machine);
                assert!(fork.has() == machine.has());
                let seen = [4, 8].map(|at| fork.get(2 * PAGE + at).unwrap());
                assert_eq!(seen, [value - 1, 0]);
                // It is mapped from the machine, and a write is the fork's own.
                machine.set(2 * PAGE + 4, value).unwrap();
                fork.set(2 * PAGE + 8, -1).unwrap();
                assert_eq!(machine.get(2 * PAGE + 8), Ok(0));
            }
        }
    }
}

#[test]
fn a_machine_that_is_given_what_its_fork_did_is_as_the_fork() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        machine.grow(70).unwrap();
        let mut fork = Guest::fork(&engine, &machine);
        for (round, pages) in [1, 3, OWN_PAGES_MAX as u32 + 9, 2, 1]
            .into_iter()
            .enumerate()
        {
            fork.follow(&machine);
            for page in 0..pages {
                fork.set(page * 8192, round as i32 + 1).unwrap();
            }
            let grown = fork.grow(round as u32 % 2).unwrap() as u32;
            if round % 2 > 0 {
                fork.set(grown * PAGE, 77).unwrap();
            }
            fork.memory.give(&machine.memory, Given::Written).unwrap();
            machine.grow(round as u32 % 2).unwrap();
            fork.memory.give(&machine.memory, Given::Grown).unwrap();
            assert!(machine.has() == fork.has(), "{round}");
        }
        assert_eq!(machine.get(8192), Ok(4));
        assert_eq!(machine.get(OWN_PAGES_MAX as u32 * 8192), Ok(3));
    }
}

#[test]
fn what_is_detached_no_longer_changes() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        machine.set(0, 1).unwrap();
        machine.set(PAGE, 2).unwrap();
        let mut fork = Guest::fork(&engine, &machine);
        fork.set(0, 3).unwrap();
        fork.memory.detach().unwrap();
        machine.set(0, 4).unwrap();
        machine.set(PAGE, 5).unwrap();
        machine.set(PAGE + 8192, 6).unwrap();
        let seen = [0, PAGE, PAGE + 8192].map(|at| fork.get(at).unwrap());
        assert_eq!(seen, [3, 2, 0]);
        fork.set(PAGE + 8192, 7).unwrap();
        assert_eq!(machine.get(PAGE + 8192), Ok(6));
    }
}

#[test]
fn the_bytes_of_a_memory_that_has_gone_are_found_by_nobody() {
    let engine = Engine::new().unwrap();
    for round in 0..40 {
        let mut guest = Guest::start(&engine);
        assert_eq!(guest.get(4096), Ok(0), "{round}");
        guest.set(4096, 1 + round).unwrap();
    }
}

#[test]
fn out_of_bounds_is_a_trap_in_a_fork_as_well() {
    for engine in engines() {
        let machine = Guest::start(&engine);
        for at in [2 * PAGE - 3, 2 * PAGE, u32::MAX - 3, 1 << 31] {
            let mut fork = Guest::fork(&engine, &machine);
            fork.set(0, 1).unwrap();
            assert_eq!(fork.set(at, 1), Err(Trap::MemoryOutOfBounds), "{at}");
        }
    }
}

#[test]
fn forks_run_on_many_threads_at_once() {
    let engine = Engine::new().unwrap();
    std::thread::scope(|scope| {
        for of in 0..4 {
            let engine = &engine;
            scope.spawn(move || {
                let mut machine = Guest::start(engine);
                let mut fork = Guest::fork(engine, &machine);
                for round in 0..200 {
                    machine.set(8, round + of).unwrap();
                    fork.follow(&machine);
                    assert_eq!(fork.get(8), Ok(round + of));
                    fork.set(8 + 4096 * (round as u32 % 30), -1).unwrap();
                }
            });
        }
    });
}

/// All that a capture has.
fn read(mut captured: Captured) -> Vec<u8> {
    let blocks = 0..captured.blocks();
    let read = blocks.flat_map(|block| captured.read_once(block, <[u8]>::to_vec).unwrap());
    read.collect()
}

#[test]
fn a_capture_is_the_memory_as_it_was_whatever_runs_meanwhile() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        machine.grow(98).unwrap();
        for round in 0..8u32 {
            for page in 0..100 {
                machine.set(page * PAGE + round, page as i32).unwrap();
            }
            let expected = machine.memory.read(<[u8]>::to_vec);
            let captured = machine.capture();
            let reader = std::thread::spawn(|| read(captured));
            // Backwards, so that the two meet.
            for page in (0..100).rev() {
                machine.set(page * PAGE + 400, round as i32).unwrap();
                assert_eq!(machine.get(page * PAGE + 400), Ok(round as i32));
            }
            assert!(reader.join().unwrap() == expected);
            assert!(machine.captures[0].is_over());
        }
    }
}

#[test]
fn a_capture_outlives_growth_and_its_machine() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        machine.set(7, 7).unwrap();
        let expected = machine.memory.read(<[u8]>::to_vec);
        let captured = machine.capture();
        // Where memories move, it moves: beyond what was reserved.
        assert_eq!(machine.grow(190), Ok(2));
        machine.set(7, 8).unwrap();
        machine.set(191 * PAGE, 9).unwrap();
        drop(machine);
        assert!(read(captured) == expected);
    }
}

#[test]
fn a_capture_that_nobody_wants_or_that_another_follows_leaves_all_open() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        drop(machine.capture());
        machine.captures.clear();
        machine.set(0, 1).unwrap();
        let one = machine.capture();
        machine.set(PAGE, 1).unwrap();
        let two = machine.capture();
        machine.set(0, 2).unwrap();
        let (one, two) = (read(one), read(two));
        assert_eq!((one[0], one[PAGE as usize]), (1, 0));
        assert_eq!((two[0], two[PAGE as usize]), (1, 1));
        machine.captures.clear();
        machine.set(0, 3).unwrap();
    }
}

#[test]
fn a_fork_gives_to_a_memory_that_is_captured() {
    for engine in engines() {
        let mut machine = Guest::start(&engine);
        let mut fork = Guest::fork(&engine, &machine);
        fork.set(5, 5).unwrap();
        let captured = machine.capture();
        fork.memory.give(&machine.memory, Given::Written).unwrap();
        assert_eq!(machine.get(5), Ok(5));
        assert_eq!(read(captured)[5], 0);
        assert!(fork.memory.capture().is_err());
    }
}
