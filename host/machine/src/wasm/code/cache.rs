//! Machine code that was compiled before, kept in a directory of this node.
//!
//! Running a wrong artefact is running arbitrary code, so an artefact counts only with a MAC under a key that never
//! leaves the node. Anything else (another key, a torn or altered file) is compiled again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use skep_core::id::ComponentId;
use wasmtime::component::Component;

use super::compiler::Allowance;
use super::private;
use crate::wasm::engine::Engine;
use crate::wasm::error::{CompileError, ComponentError};

const MAGIC: &[u8; 8] = b"skepcode";
const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;

/// The largest artefact that is read back, in bytes. Compiled code is two to four times its component.
const MAX_ARTEFACT_BYTES: u64 = 512 << 20;

/// How the name of compiled code ends, and of the note that there is none.
const CODE: &str = "code";
const REFUSED: &str = "refused";

/// A directory of compiled components. Several processes may share one: files appear whole or not at all.
pub struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    may_keep: Box<MayKeep>,
}

/// Whether so many bytes may be kept, or why not.
type MayKeep = dyn Fn(u64) -> io::Result<()> + Send + Sync;

/// First and longest pause until a component is compiled again that was late, or failed the compiler: a minute that doubles. So
/// it costs a node little in the long run, and one that was only too busy comes to it.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What is remembered of a component that could not be compiled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// Why not, the last time.
    pub error: CompileError,
    /// Attempts that have failed.
    pub attempts: u32,
    /// What the last one was allowed.
    pub under: Allowance,
    /// When it ended, by the wall clock in nanoseconds.
    pub at: u64,
}

impl Refusal {
    /// Whether it is not to be tried again yet. More that is allowed than then is always a reason to.
    pub fn stands(&self, now: u64, allowance: &Allowance) -> bool {
        if allowance.exceeds(&self.under) {
            return false;
        }
        match self.error {
            // It would be the same again.
            CompileError::Invalid(_) | CompileError::Memory { .. } => true,
            CompileError::Late { .. } | CompileError::Crashed(_) => {
                let doubled = PAUSE
                    .0
                    .saturating_mul(1 << self.attempts.saturating_sub(1).min(16));
                now.abs_diff(self.at) < doubled.min(PAUSE.1).as_nanos() as u64
            }
            CompileError::Local(_) => false,
        }
    }
}

impl Cache {
    /// Opens the cache in `dir`, creating the directory and its key file (`key`, readable by its owner only) if need be.
    /// A key file that others can read or own, or of the wrong length, is replaced; what was cached under it is compiled again.
    /// So it is if others could write into the directory.
    ///
    /// # Errors
    /// [`ComponentError::Cache`]; among others if the directory is another user's, who could have this process run what he likes.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ComponentError> {
        let dir = dir.into();
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ComponentError::Cache { path, source }
        };
        let path = dir.join("key");
        let was_open = private::directory(&dir).map_err(failed(&dir))?;
        if was_open {
            tracing::warn!(dir = %dir.display(), "others could write into the cache; what is in it is not believed");
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
            .map_err(failed(&path))?;
        }
        let key = key(&path).map_err(failed(&path))?;
        Ok(Self {
            dir,
            key,
            may_keep: Box::new(|_| Ok(())),
        })
    }

    /// Has somebody asked before machine code of so many bytes is kept. What may not be kept is used all the same, and compiled
    /// again after a restart.
    pub fn keep_only_if(&mut self, may: impl Fn(u64) -> io::Result<()> + Send + Sync + 'static) {
        self.may_keep = Box::new(may);
    }

    /// The components that code is kept of, or the note that there is none.
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

    /// Deletes the code of a component, of whatever engine, and what is remembered of it; that there is none is no error.
    /// Machines that run keep theirs.
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

    pub(crate) fn fetch(&self, engine: &Engine, id: ComponentId) -> Option<Component> {
        let name = name(engine, id, CODE);
        let code = self.read(&name)?;
        // SAFETY: the bytes carry a MAC under this node's own key, over a name that holds the component, the engine's
        // settings and the rewriting: they are what a `Compiler` returned for this very configuration here.
        match unsafe { Component::deserialize(engine.inner(), &code) } {
            Ok(component) => Some(component),
            Err(error) => {
                let path = self.dir.join(&name);
                tracing::warn!(path = %path.display(), "compiled code does not load ({error:#}); compiling again");
                None
            }
        }
    }

    /// Keeps machine code. A cache that cannot be written costs time at the next start and nothing else, so it is
    /// reported to the operator only.
    pub(crate) fn store(&self, engine: &Engine, id: ComponentId, code: &[u8]) {
        self.keep(&name(engine, id, CODE), code);
    }

    /// What is remembered of attempts to compile a component for this engine.
    pub fn refusal(&self, engine: &Engine, id: ComponentId) -> Option<Refusal> {
        let note = self.read(&name(engine, id, REFUSED))?;
        serde_json::from_slice(&note).ok()
    }

    /// Remembers one more failed attempt, so that neither a restart nor whoever asks again has the same work done over and over.
    pub fn refuse(&self, engine: &Engine, id: ComponentId, latest: Refusal) {
        if matches!(latest.error, CompileError::Local(_)) {
            return;
        }
        let before = self.refusal(engine, id);
        let before = before.filter(|before| !latest.under.exceeds(&before.under));
        let attempts = before.map_or(0, |before| before.attempts);
        let refusal = Refusal {
            attempts: latest.attempts.saturating_add(attempts),
            ..latest
        };
        let note = serde_json::to_vec(&refusal).expect("plain values always become JSON");
        self.keep(&name(engine, id, REFUSED), &note);
    }

    /// What was kept under a name; nothing if it is damaged or not ours.
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.dir.join(name);
        let mut kept = match read(&path) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read compiled code; compiling again");
                return None;
            }
        };
        let Some(content) = self.verify(name, &kept) else {
            tracing::warn!(path = %path.display(), "compiled code is damaged or not ours; compiling again");
            return None;
        };
        let head = kept.len() - content.len();
        kept.drain(..head);
        Some(kept)
    }

    fn keep(&self, name: &str, content: &[u8]) {
        let path = self.dir.join(name);
        let kept = (self.may_keep)(content.len() as u64)
            .and_then(|()| self.write(&path, &self.seal(name, content), content));
        if let Err(error) = kept {
            tracing::warn!(path = %path.display(), %error, "cannot keep compiled code");
        }
    }

    fn write(&self, path: &Path, seal: &[u8], code: &[u8]) -> io::Result<()> {
        let temporary = temporary(path)?;
        let written = || {
            let mut file = private::new_file(&temporary)?;
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

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("dir", &self.dir).finish()
    }
}

/// Everything that machine code depends on, as a file name.
fn name(engine: &Engine, id: ComponentId, suffix: &str) -> String {
    let settings = ComponentId(engine.fingerprint()).to_string();
    format!("{id}-{}.{suffix}", &settings[..16])
}

/// The component that a file is about.
fn component_of(path: &Path) -> Option<ComponentId> {
    let (id, rest) = path.file_name()?.to_str()?.split_once('-')?;
    let (_, suffix) = rest.split_once('.')?;
    [CODE, REFUSED].contains(&suffix).then(|| id.parse().ok())?
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
            Ok(mut file) if private::is_private(&file)? => {
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
                tracing::warn!(path = %path.display(), "the cache's key can be read by others, or is another user's; making a new one");
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
    private::new_file(&temporary)?.write_all(&key)?;
    // A link, unlike a rename, never replaces the key of a process that was faster.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked.map(|()| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(engine: &Engine) -> (ComponentId, Vec<u8>) {
        let text = "(component (core module $m (func (export \"f\") (result i32) (i32.const 7)))
            (core instance $i (instantiate $m)) (func (export \"f\") (result s32) (canon lift (core func $i \"f\"))))";
        let bytes = wat::parse_str(text).unwrap();
        (
            ComponentId::of(&bytes),
            engine.inner().precompile_component(&bytes).unwrap(),
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
        fs::rename(&path, one.path().join(name(&engine, another, CODE))).unwrap();
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

    #[cfg(unix)]
    #[test]
    fn files_are_their_owners_and_a_directory_that_others_could_write_to_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("compiled");
        let engine = Engine::new().unwrap();
        let (id, code) = component(&engine);
        let cache = Cache::open(&dir).unwrap();
        cache.store(&engine, id, &code);
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&only_artefact(&dir)), 0o600);
        // Others may look, which is no reason to compile anything again.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let looked = Cache::open(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert!(looked.fetch(&engine, id).is_some());
        for open in [0o770, 0o702] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(open)).unwrap();
            let doubted = Cache::open(&dir).unwrap();
            assert_eq!(mode(&dir), 0o700);
            assert!(doubted.fetch(&engine, id).is_none(), "{open:o}");
            doubted.store(&engine, id, &code);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_or_a_key_of_another_user_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("compiled");
        let first = Cache::open(&dir).unwrap().key;
        let give_away = |path: &Path, to| std::os::unix::fs::chown(path, Some(to), None);
        if give_away(&dir.join("key"), 12345).is_err() {
            // Only root can give a file away, and only then could the other's word matter.
            return;
        }
        assert_ne!(Cache::open(&dir).unwrap().key, first);
        give_away(&dir, 12345).unwrap();
        let refused = Cache::open(&dir).unwrap_err().to_string();
        assert!(refused.contains("12345"), "{refused}");
    }

    #[test]
    fn what_there_is_no_room_for_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new().unwrap();
        let (id, code) = component(&engine);
        let mut cache = Cache::open(dir.path()).unwrap();
        let size = code.len() as u64;
        cache.keep_only_if(move |bytes| match bytes < size {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        });
        cache.store(&engine, id, &code);
        assert!(cache.fetch(&engine, id).is_none());
        cache.keep_only_if(|_| Ok(()));
        cache.store(&engine, id, &code);
        assert!(cache.fetch(&engine, id).is_some());
    }

    #[test]
    fn a_refusal_stands_for_its_time_and_until_more_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new().unwrap();
        let id = ComponentId::of(b"a bomb");
        let under = Allowance {
            memory_bytes: 10,
            milliseconds: 10,
        };
        let failed = |error, under, at| Refusal {
            error,
            attempts: 1,
            under,
            at,
        };
        let cache = Cache::open(dir.path()).unwrap();
        assert_eq!(cache.refusal(&engine, id), None);
        let local = CompileError::Local("EMFILE".into());
        cache.refuse(&engine, id, failed(local, under, 0));
        assert_eq!(cache.refusal(&engine, id), None);
        const MINUTE: u64 = 60_000_000_000;
        let mut now = MINUTE;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let late = CompileError::Late { milliseconds: 10 };
            cache.refuse(&engine, id, failed(late, under, now));
            let reopened = Cache::open(dir.path()).unwrap();
            let refusal = reopened.refusal(&engine, id).unwrap();
            assert!(refusal.stands(now + pause * MINUTE - 1, &under), "{pause}");
            now += pause * MINUTE;
            assert!(!refusal.stands(now, &under), "{pause}");
        }
        let more = Allowance {
            milliseconds: 11,
            ..under
        };
        let refusal = cache.refusal(&engine, id).unwrap();
        assert!(!refusal.stands(refusal.at, &more));
        let memory = CompileError::Memory { limit: 10 };
        cache.refuse(&engine, id, failed(memory, more, now));
        let refusal = cache.refusal(&engine, id).unwrap();
        assert_eq!(
            (refusal.attempts, refusal.stands(u64::MAX, &more)),
            (1, true)
        );
        assert_eq!(cache.ids().unwrap(), [id].into());
        cache.remove(id).unwrap();
        assert_eq!(cache.refusal(&engine, id), None);
    }
}
