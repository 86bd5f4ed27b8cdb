//! Machine code that was compiled before, kept in a directory of this node.
//!
//! Running a wrong artefact is running arbitrary code, so an artefact counts only with a MAC under a key that never
//! leaves the node. Anything else (another key, a torn or altered file) is compiled again.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use skep_core::id::ComponentId;
use wasmtime::component::Component;

use super::component::ComponentError;
use super::depth;
use super::engine::Engine;

const MAGIC: &[u8; 8] = b"skepcode";
const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;

/// The largest artefact that is read back, in bytes. Compiled code is two to four times its component.
const MAX_ARTEFACT_BYTES: u64 = 512 << 20;

/// A directory of compiled components. Several processes may share one: files appear whole or not at all.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
}

impl Cache {
    /// Opens the cache in `dir`, creating the directory and its key file (`key`, readable by its owner only) if need be.
    /// A key file that others can read, or of the wrong length, is replaced; what was cached under it is compiled again.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ComponentError> {
        let dir = dir.into();
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ComponentError::Cache { path, source }
        };
        fs::create_dir_all(&dir).map_err(failed(&dir))?;
        let path = dir.join("key");
        let key = key(&path).map_err(failed(&path))?;
        Ok(Self { dir, key })
    }

    /// The components that code is kept of.
    ///
    /// # Errors
    /// [`ComponentError::Cache`]: the directory cannot be read.
    pub fn ids(&self) -> Result<BTreeSet<ComponentId>, ComponentError> {
        Ok(self
            .files()?
            .iter()
            .filter_map(|path| component_of(path))
            .collect())
    }

    /// Deletes the code of a component, of whatever engine; that there is none is no error. Machines that run keep theirs.
    ///
    /// # Errors
    /// [`ComponentError::Cache`]: a file cannot be deleted.
    pub fn remove(&self, id: ComponentId) -> Result<(), ComponentError> {
        for path in self.files()? {
            if component_of(&path) != Some(id) {
                continue;
            }
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(ComponentError::Cache { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>, ComponentError> {
        let list = || {
            fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()
        };
        list().map_err(|source| ComponentError::Cache {
            path: self.dir.clone(),
            source,
        })
    }

    pub(super) fn fetch(&self, engine: &Engine, id: ComponentId) -> Option<Component> {
        let name = name(engine, id);
        let path = self.dir.join(&name);
        let artefact = match read(&path) {
            Ok(artefact) => artefact,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read compiled code; compiling again");
                return None;
            }
        };
        let Some(code) = self.verify(&name, &artefact) else {
            tracing::warn!(path = %path.display(), "compiled code is damaged or not ours; compiling again");
            return None;
        };
        // SAFETY: the bytes carry a MAC under this node's own key, over a name that holds the component, the engine's
        // settings and the rewriting: they are what `Component::serialize` of this very configuration returned here.
        match unsafe { Component::deserialize(engine.inner(), code) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), "compiled code does not load ({error:#}); compiling again");
                None
            }
        }
    }

    /// Keeps `component`. A cache that cannot be written costs time at the next start and nothing else, so it is
    /// reported to the operator only.
    pub(super) fn store(&self, engine: &Engine, id: ComponentId, component: &Component) {
        let name = name(engine, id);
        let path = self.dir.join(&name);
        let stored = component
            .serialize()
            .map_err(|error| io::Error::other(format!("{error:#}")))
            .and_then(|code| self.write(&path, &self.seal(&name, &code), &code));
        if let Err(error) = stored {
            tracing::warn!(path = %path.display(), %error, "cannot keep compiled code");
        }
    }

    fn write(&self, path: &Path, seal: &[u8], code: &[u8]) -> io::Result<()> {
        let temporary = temporary(path)?;
        let written = || {
            let mut file = File::create_new(&temporary)?;
            file.write_all(MAGIC)?;
            file.write_all(seal)?;
            file.write_all(code)?;
            drop(file);
            fs::rename(&temporary, path)
        };
        written().inspect_err(|_| {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
        })
    }

    fn mac(&self, name: &str, code: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(&(name.len() as u64).to_le_bytes());
        mac.update(name.as_bytes());
        mac.update(code);
        mac
    }

    fn seal(&self, name: &str, code: &[u8]) -> [u8; MAC_BYTES] {
        self.mac(name, code).finalize().into_bytes().into()
    }

    fn verify<'a>(&self, name: &str, artefact: &'a [u8]) -> Option<&'a [u8]> {
        let (seal, code) = artefact.strip_prefix(MAGIC)?.split_at_checked(MAC_BYTES)?;
        self.mac(name, code).verify_slice(seal).ok()?;
        Some(code)
    }
}

/// Everything that machine code depends on, as a file name.
fn name(engine: &Engine, id: ComponentId) -> String {
    let mut settings = Digester(Sha256::new());
    engine
        .inner()
        .precompile_compatibility_hash()
        .hash(&mut settings);
    depth::VERSION.hash(&mut settings);
    let settings = ComponentId(settings.0.finalize().into()).to_string();
    format!("{id}-{}.code", &settings[..16])
}

/// The component whose code a file has.
fn component_of(path: &Path) -> Option<ComponentId> {
    let name = path.file_name()?.to_str()?.strip_suffix(".code")?;
    name.split_once('-')?.0.parse().ok()
}

/// SHA-256 behind the standard library's hashing, whose own hashers may change between releases.
struct Digester(Sha256);

impl Hasher for Digester {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest
            .iter()
            .take(8)
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    }
}

/// A name beside `path` that nobody else has.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(path.with_extension(format!("tmp-{:016x}", u64::from_le_bytes(nonce))))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut artefact = Vec::new();
    File::open(path)?
        .take(MAX_ARTEFACT_BYTES)
        .read_to_end(&mut artefact)?;
    Ok(artefact)
}

fn key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    // Two processes may start at once: the one that loses the race reads the winner's key.
    for _ in 0..2 {
        match File::open(path) {
            Ok(mut file) if is_private(&file)? => {
                let mut bytes = Vec::new();
                Read::by_ref(&mut file)
                    .take(KEY_BYTES as u64 + 1)
                    .read_to_end(&mut bytes)?;
                if let Ok(key) = bytes.try_into() {
                    return Ok(key);
                }
                tracing::warn!(path = %path.display(), "the cache's key is damaged; making a new one");
                fs::remove_file(path)?;
            }
            Ok(_) => {
                tracing::warn!(path = %path.display(), "the cache's key can be read by others; making a new one");
                fs::remove_file(path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match new_key(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done,
        }
    }
    Err(io::Error::other("the key changes while it is read"))
}

fn new_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let temporary = temporary(path)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&temporary)?.write_all(&key)?;
    // A link, unlike a rename, never replaces the key of a process that was faster.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked.map(|()| key)
}

#[cfg(unix)]
fn is_private(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata()?.permissions().mode() & 0o077 == 0)
}

#[cfg(not(unix))]
fn is_private(_: &File) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(engine: &Engine) -> (ComponentId, Component) {
        let text = "(component (core module $m (func (export \"f\") (result i32) (i32.const 7)))
            (core instance $i (instantiate $m)) (func (export \"f\") (result s32) (canon lift (core func $i \"f\"))))";
        let bytes = wat::parse_str(text).unwrap();
        (
            ComponentId::of(&bytes),
            Component::new(engine.inner(), &bytes).unwrap(),
        )
    }

    fn only_artefact(dir: &Path) -> PathBuf {
        let mut files = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap() != "key")
            .collect::<Vec<_>>();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    #[test]
    fn what_was_stored_comes_back_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new().unwrap();
        let (id, code) = component(&engine);
        let cache = Cache::open(dir.path()).unwrap();
        assert!(cache.fetch(&engine, id).is_none());
        cache.store(&engine, id, &code);
        assert!(cache.fetch(&engine, id).is_some());
        let reopened = Cache::open(dir.path()).unwrap();
        assert!(reopened.fetch(&Engine::new().unwrap(), id).is_some());
        assert!(
            reopened
                .fetch(&engine, ComponentId::of(b"another"))
                .is_none()
        );
    }

    #[test]
    fn an_altered_or_torn_artefact_is_never_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new().unwrap();
        let (id, code) = component(&engine);
        let cache = Cache::open(dir.path()).unwrap();
        cache.store(&engine, id, &code);
        let path = only_artefact(dir.path());
        let whole = fs::read(&path).unwrap();
        for at in [
            0,
            MAGIC.len(),
            MAGIC.len() + MAC_BYTES,
            whole.len() / 2,
            whole.len() - 1,
        ] {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).unwrap();
            assert!(cache.fetch(&engine, id).is_none(), "byte {at}");
        }
        for len in [
            0,
            4,
            MAGIC.len() + 3,
            MAGIC.len() + MAC_BYTES,
            whole.len() - 1,
        ] {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(cache.fetch(&engine, id).is_none(), "{len} bytes");
        }
        // The next store mends it.
        cache.store(&engine, id, &code);
        assert_eq!(fs::read(only_artefact(dir.path())).unwrap(), whole);
    }

    #[test]
    fn an_artefact_of_another_key_or_under_another_name_is_not_ours() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let engine = Engine::new().unwrap();
        let (id, code) = component(&engine);
        let (cache, other) = (
            Cache::open(one.path()).unwrap(),
            Cache::open(two.path()).unwrap(),
        );
        cache.store(&engine, id, &code);
        let path = only_artefact(one.path());
        fs::copy(&path, two.path().join(path.file_name().unwrap())).unwrap();
        assert!(other.fetch(&engine, id).is_none());
        let another = ComponentId::of(b"another");
        fs::rename(&path, one.path().join(name(&engine, another))).unwrap();
        assert!(cache.fetch(&engine, another).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn the_key_is_private_and_a_bad_one_is_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Cache::open(dir.path()).unwrap().key;
        let path = dir.path().join("key");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(Cache::open(dir.path()).unwrap().key, first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let second = Cache::open(dir.path()).unwrap().key;
        assert_ne!(second, first);
        fs::write(&path, b"short").unwrap();
        assert_ne!(Cache::open(dir.path()).unwrap().key, second);
    }
}
