//! Instances whose memories the tests can read and write.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use wasmparser::WasmFeatures;
use wasmtime::component::{Component, Instance, Linker};
use wasmtime::{Config, Engine, LinearMemory, MemoryCreator, MemoryType, Store};

use super::super::{FREEZE, THAW};
use super::imaged;
use crate::wasm::code::depth::count_stack;
use crate::wasm::code::expansion::size_of;
use crate::wasm::engine::FEATURES_OF_CODE;

/// What a memory of these tests may grow to.
const CAPACITY: usize = 8 << 16;

/// Keeps the memories that it makes in reach, as a host does that owns them.
#[derive(Default)]
struct Memories(Mutex<Vec<Arc<Block>>>);

struct Block {
    at: usize,
    bytes: AtomicUsize,
    is_image: bool,
}

impl Block {
    fn contents(&self) -> Vec<u8> {
        // SAFETY: it is never given back, and no guest runs meanwhile.
        unsafe { std::slice::from_raw_parts(self.at as *const u8, self.bytes.load(Relaxed)) }
            .to_vec()
    }

    fn fill(&self, contents: &[u8]) {
        assert_eq!(contents.len(), self.bytes.load(Relaxed));
        // SAFETY: as above; it is as long as that.
        unsafe {
            std::ptr::copy_nonoverlapping(contents.as_ptr(), self.at as *mut u8, contents.len());
        }
    }
}

struct Memory(Arc<Block>);

// SAFETY: all of its capacity is there from the start.
unsafe impl LinearMemory for Memory {
    fn byte_size(&self) -> usize {
        self.0.bytes.load(Relaxed)
    }

    fn byte_capacity(&self) -> usize {
        CAPACITY
    }

    fn grow_to(&mut self, bytes: usize) -> wasmtime::Result<()> {
        if bytes > CAPACITY {
            wasmtime::bail!("{bytes} bytes are more than a memory of the tests has");
        }
        self.0.bytes.store(bytes, Relaxed);
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.at as *mut u8
    }
}

// SAFETY: the engine is told of no reservation and no guard, so it checks each access.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        _: Option<usize>,
        _: Option<usize>,
        _: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let block = Arc::new(Block {
            at: vec![0u8; CAPACITY].leak().as_mut_ptr() as usize,
            bytes: AtomicUsize::new(minimum),
            is_image: ty.page_size() == 1,
        });
        self.0.lock().unwrap().push(Arc::clone(&block));
        Ok(Box::new(Memory(block)))
    }
}

/// A component that may be started many times.
pub(super) struct Guest {
    component: Component,
    memories: Arc<Memories>,
}

pub(super) struct Running {
    store: Store<()>,
    instance: Instance,
    memories: Vec<Arc<Block>>,
}

impl Guest {
    pub(super) fn new(text: &str) -> Self {
        let bytes = wat::parse_str(text).unwrap();
        let scopes = size_of(&bytes).unwrap().scopes;
        let imaged = imaged(&bytes).unwrap();
        let code = count_stack(&imaged, scopes, FEATURES_OF_CODE).unwrap();
        let memories = Arc::new(Memories::default());
        let mut config = Config::new();
        config.wasm_features(FEATURES_OF_CODE, true);
        config.wasm_features(WasmFeatures::all().difference(FEATURES_OF_CODE), false);
        config.concurrency_support(false);
        config.memory_reservation(0);
        config.memory_reservation_for_growth(0);
        config.memory_guard_size(0);
        config.memory_init_cow(false);
        config.with_host_memory(Arc::clone(&memories) as _);
        let engine = Engine::new(&config).unwrap();
        let component = Component::new(&engine, code).unwrap();
        Self {
            component,
            memories,
        }
    }

    pub(super) fn start(&self) -> Running {
        let engine = self.component.engine();
        let mut store = Store::new(engine, ());
        let instance = Linker::new(engine)
            .instantiate(&mut store, &self.component)
            .unwrap();
        let memories = std::mem::take(&mut *self.memories.0.lock().unwrap());
        Running {
            store,
            instance,
            memories,
        }
    }
}

impl Running {
    pub(super) fn call(&mut self, name: &str, argument: i32) -> i32 {
        let function = self
            .instance
            .get_typed_func::<(i32,), (i32,)>(&mut self.store, name)
            .unwrap();
        function.call(&mut self.store, (argument,)).unwrap().0
    }

    /// Calls the function of each image module; how many there are.
    pub(super) fn images(&mut self, name: &str) -> wasmtime::Result<usize> {
        for number in 0.. {
            let name = format!("{name}{number}");
            let Some(function) = self.instance.get_func(&mut self.store, &name) else {
                return Ok(number);
            };
            let function = function.typed::<(), ()>(&self.store).unwrap();
            function.call(&mut self.store, ())?;
        }
        Ok(0)
    }

    pub(super) fn freeze(&mut self) -> usize {
        self.images(FREEZE).unwrap()
    }

    /// Makes it what `other` was when that was frozen.
    pub(super) fn become_as(&mut self, other: &Self) {
        self.take(other, true);
        self.images(THAW).unwrap();
        self.take(other, false);
    }

    pub(super) fn take(&self, other: &Self, images: bool) {
        for (mine, theirs) in self.memories.iter().zip(&other.memories) {
            assert_eq!(mine.is_image, theirs.is_image);
            if mine.is_image == images {
                mine.fill(&theirs.contents());
            }
        }
    }

    pub(super) fn contents(&self) -> Vec<Vec<u8>> {
        self.memories.iter().map(|block| block.contents()).collect()
    }
}
