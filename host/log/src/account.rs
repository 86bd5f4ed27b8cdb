//! What a store says of itself to other nodes: its lives, and how far its log is durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use skep_types::past::{Durable, LIVES_TOLD, Life, Past};
use skep_types::shared::lock;
use skep_vfs::{Vfs, replace};

use crate::error::LogError;
use crate::identity::{seal, unseal};

/// The past of a store, as it is now. Before its log is open there is none.
///
/// *Concurrency*: any thread; never waits for the disk.
#[derive(Debug, Default)]
pub struct Account {
    lives: Mutex<Vec<Life>>,
    /// The log moves it on after each sync.
    durable: Mutex<Arc<AtomicU64>>,
}

const MAGIC: &str = "skep lives, format 1";

/// A line has less than 64 bytes.
const LIVES_BYTES: u64 = 64 * (LIVES_TOLD as u64 + 2);

/// The note in a directory that went back.
const NOTE: &str = "went-back";

/// It is for people, and short.
const NOTE_BYTES: u64 = 4 << 10;

impl Account {
    /// The past until now.
    pub fn past(&self) -> Past {
        Past {
            lives: lock(&self.lives).clone(),
            durable: self.durable(),
        }
    }

    /// The lives that a data directory had until now; for somebody who only looks.
    ///
    /// # Errors
    /// [`LogError::BadIdentity`] if the file is damaged; [`LogError::Io`].
    pub fn lives(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<Life>, LogError> {
        read(vfs, dir)
    }

    /// How far the log is durable.
    pub fn durable(&self) -> Durable {
        Durable(lock(&self.durable).load(Ordering::Acquire))
    }

    /// Begins the next life of the directory, durably: before its node speaks to anybody.
    pub(crate) fn begin(
        &self,
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        nonce: u64,
        (began, durable): (Durable, Arc<AtomicU64>),
    ) -> Result<(), LogError> {
        let mut lives = read(&**vfs, dir)?;
        lives.push(Life {
            number: lives.last().map_or(0, |life| life.number) + 1,
            nonce,
            began,
        });
        let told = lives.len().saturating_sub(LIVES_TOLD);
        lives.drain(..told);
        replace(vfs, &path(dir), 0, &[render(&lives).as_bytes()])?;
        *lock(&self.lives) = lives;
        *lock(&self.durable) = durable;
        Ok(())
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("lives")
}

/// The lives of a data directory; none if it had none.
fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<Life>, LogError> {
    let path = path(dir);
    let bad = |reason: &str| LogError::BadIdentity {
        file: path.clone(),
        reason: reason.to_owned(),
    };
    match vfs.read(&path, LIVES_BYTES) {
        Ok(content) => parse(unseal(&content).map_err(bad)?)
            .ok_or_else(|| bad("its lives do not follow one another")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(bad("it is too large")),
        Err(error) => Err(LogError::io("read", &path)(error)),
    }
}

fn render(lives: &[Life]) -> String {
    let line = |life: &Life| {
        let Life {
            number,
            nonce,
            began: Durable(began),
        } = life;
        format!("{number} {nonce:016x} {began:016x}\n")
    };
    let lines: String = lives.iter().map(line).collect();
    seal(&format!("{MAGIC}\n{lines}"))
}

fn parse(text: &str) -> Option<Vec<Life>> {
    let lines = text.strip_prefix(MAGIC)?.strip_prefix('\n')?.lines();
    let life = |line: &str| {
        let mut fields = line.split(' ');
        let life = Life {
            number: fields.next()?.parse().ok()?,
            nonce: u64::from_str_radix(fields.next()?, 16).ok()?,
            began: Durable(u64::from_str_radix(fields.next()?, 16).ok()?),
        };
        fields.next().is_none().then_some(life)
    };
    let lives = lines.map(life).collect::<Option<_>>()?;
    let past = Past {
        lives,
        durable: Durable::default(),
    };
    past.is_sound().then_some(past.lives)
}

/// Notes in a directory, durably, that its store went back, as another node says in these words. From then on it is refused by
/// [`Store::open`](crate::Store::open), also where that other node is not heard.
///
/// # Errors
/// [`LogError::Io`].
pub fn note_went_back(vfs: &Arc<dyn Vfs>, dir: &Path, why: &str) -> Result<(), LogError> {
    // What another node says may be long; a piece of a character would make it unreadable.
    let why: String = why.chars().take(NOTE_BYTES as usize / 8).collect();
    Ok(replace(vfs, &dir.join(NOTE), 0, &[why.as_bytes()])?)
}

/// Refuses a directory with such a note.
pub(crate) fn refuse_gone_back(vfs: &dyn Vfs, dir: &Path) -> Result<(), LogError> {
    let file = dir.join(NOTE);
    match vfs.read(&file, NOTE_BYTES) {
        Ok(why) => Err(LogError::WentBack {
            file,
            why: String::from_utf8_lossy(&why).into_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(LogError::io("read", &file)(error)),
    }
}
