//! A file system that shows every call that changes the disk, before and after it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use skep_log::{SimVfs, Vfs, VfsFile, VfsLock};

/// A call that changes the disk or makes a change durable.
pub struct Call {
    /// The method's name.
    pub what: &'static str,
    /// On which file or directory; of a rename, the old name.
    pub path: PathBuf,
    /// The offset and the bytes of a write.
    pub write: Option<(u64, Bytes)>,
}

impl Call {
    fn new(what: &'static str, path: impl Into<PathBuf>) -> Call {
        Call {
            what,
            path: path.into(),
            write: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    Before,
    After,
}

type Watch = Arc<dyn Fn(When, &Call) + Send + Sync>;

/// Passes every call on to a simulated disk, and tells `watch` of each [`Call`] before and after it.
#[derive(Clone)]
pub struct Traced(Arc<Shared>);

struct Shared {
    disk: SimVfs,
    watch: Watch,
    /// The present name of each open file.
    names: Mutex<BTreeMap<u64, PathBuf>>,
    opened: AtomicU64,
}

impl Traced {
    pub fn new(disk: &SimVfs, watch: impl Fn(When, &Call) + Send + Sync + 'static) -> Traced {
        Traced(Arc::new(Shared {
            disk: disk.clone(),
            watch: Arc::new(watch),
            names: Mutex::default(),
            opened: AtomicU64::new(0),
        }))
    }

    fn around<T>(&self, call: Call, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        (self.0.watch)(When::Before, &call);
        let outcome = act();
        (self.0.watch)(When::After, &call);
        outcome
    }

    fn file(&self, path: &Path, file: Box<dyn VfsFile>) -> Box<dyn VfsFile> {
        let id = self.0.opened.fetch_add(1, Relaxed);
        self.names(|names| names.insert(id, path.to_path_buf()));
        Box::new(TracedFile {
            vfs: self.clone(),
            id,
            file,
        })
    }

    fn names<T>(&self, use_them: impl FnOnce(&mut BTreeMap<u64, PathBuf>) -> T) -> T {
        use_them(&mut self.0.names.lock().expect("nobody panicked"))
    }
}

impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traced")
    }
}

impl Vfs for Traced {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.around(Call::new("create_dir_all", dir), || {
            self.0.disk.create_dir_all(dir)
        })
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let file = self.around(Call::new("create", path), || self.0.disk.create(path))?;
        Ok(self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        Ok(self.file(path, self.0.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.around(Call::new("rename", from), || {
            self.0.disk.rename(from, to)?;
            self.names(|names| {
                names.retain(|_, name| name != to);
                for name in names.values_mut().filter(|name| *name == from) {
                    *name = to.into();
                }
            });
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.around(Call::new("remove", path), || {
            self.0.disk.remove(path)?;
            self.names(|names| names.retain(|_, name| name != path));
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.around(Call::new("sync_dir", dir), || self.0.disk.sync_dir(dir))
    }

    fn lock(&self, path: &Path) -> io::Result<VfsLock> {
        self.0.disk.lock(path)
    }
}

#[derive(Debug)]
struct TracedFile {
    vfs: Traced,
    id: u64,
    file: Box<dyn VfsFile>,
}

impl TracedFile {
    /// The file's present name, which it has for as long as the log writes to it.
    fn path(&self) -> PathBuf {
        let name = self.vfs.names(|names| names.get(&self.id).cloned());
        name.expect("a file that was removed or replaced is not written to")
    }
}

impl VfsFile for TracedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let call = Call {
            write: Some((offset, Bytes::copy_from_slice(data))),
            ..Call::new("write_all_at", self.path())
        };
        self.vfs
            .around(call, || self.file.write_all_at(offset, data))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.vfs
            .around(Call::new("set_len", self.path()), || self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.vfs.around(Call::new("sync_data", self.path()), || {
            self.file.sync_data()
        })
    }
}
