//! Files that get their content whole or not at all.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::vfs::{Vfs, VfsFile};

/// Bytes are handed to the system in pieces of this size.
const WRITE_STEP: usize = 1 << 20;

/// What was written is made durable after so many bytes. A file system may write all of it before the next sync of any other file
/// returns: after 200 MiB in one piece the log's syncs waited for 0.2 s.
const SYNC_STEP: u64 = 8 << 20;

/// A step on the way of a file to its name that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", .path.display())]
pub struct FileError {
    /// What was attempted, as a verb.
    pub action: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the system answered.
    pub source: io::Error,
}

impl FileError {
    fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl From<FileError> for io::Error {
    fn from(failed: FileError) -> io::Error {
        io::Error::new(failed.source.kind(), failed)
    }
}

/// A file on its way to its name: written beside it, made durable, renamed, and the name made durable.
///
/// *Failure*: a crash at any point leaves under the name what was there before, or the new content, never a part of it.
/// A draft that is dropped removes what it wrote. After a crash a draft stays: whoever opens the directory removes it, or the
/// next draft of that name does.
#[derive(Debug)]
pub struct Draft {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    temporary: PathBuf,
    file: Arc<dyn VfsFile>,
    len: u64,
    /// Of these bytes so many are durable.
    synced: u64,
    /// A sync failed, so the system may have dropped what was written, and no later sync would say so.
    lost: bool,
    placed: bool,
}

impl Draft {
    /// How the name of a draft ends.
    pub const SUFFIX: &str = ".tmp";

    /// Begins a file that will be `path`. Two drafts of one path at the same time differ in `unique`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(
        vfs: &Arc<dyn Vfs>,
        path: PathBuf,
        unique: impl Display,
    ) -> Result<Draft, FileError> {
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{unique}{}", Draft::SUFFIX));
        let temporary = PathBuf::from(temporary);
        let made = match vfs.create(&temporary) {
            // A crash left it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                vfs.remove(&temporary).and_then(|()| vfs.create(&temporary))
            }
            made => made,
        };
        let file = made.map_err(FileError::of("create", &temporary))?;
        Ok(Draft {
            vfs: Arc::clone(vfs),
            path,
            temporary,
            file: file.into(),
            len: 0,
            synced: 0,
            lost: false,
            placed: false,
        })
    }

    /// Adds to the content. After an error it may be called again with the same bytes.
    ///
    /// # Errors
    /// The bytes cannot be written; or they cannot be made durable, and then the draft can only be dropped.
    pub fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        let mut end = self.len;
        for piece in data.chunks(WRITE_STEP) {
            self.file
                .write_all_at(end, piece)
                .map_err(FileError::of("write", &self.temporary))?;
            end += piece.len() as u64;
            if end - self.synced >= SYNC_STEP {
                self.sync()?;
                self.synced = end;
            }
        }
        self.len = end;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FileError> {
        let synced = match self.lost {
            false => self.file.sync_data(),
            true => Err(io::Error::other("an earlier sync of it has failed")),
        };
        self.lost |= synced.is_err();
        synced.map_err(FileError::of("sync", &self.temporary))
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.len
    }

    /// The name the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name it has until then.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// The file, to look at what was written.
    pub fn file(&self) -> &Arc<dyn VfsFile> {
        &self.file
    }

    /// Makes the content durable, under the file's name.
    ///
    /// # Errors
    /// If only the directory could not be synced, the file has its name, and may lose it in a crash. After any other error it
    /// is as if there had been no draft.
    pub fn place(mut self) -> Result<Arc<dyn VfsFile>, FileError> {
        self.sync()?;
        place(&*self.vfs, &self.temporary, &self.path)?;
        self.placed = true;
        Ok(Arc::clone(&self.file))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            // The first error is the one to report, and the next who opens the directory removes drafts as well.
            let _ = self.vfs.remove(&self.temporary);
        }
    }
}

/// Gives a file whose content is durable its name, durably.
///
/// # Errors
/// The file cannot be renamed, or its directory not be synced.
pub fn place(vfs: &dyn Vfs, from: &Path, to: &Path) -> Result<(), FileError> {
    vfs.rename(from, to)
        .map_err(FileError::of("rename", from))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    vfs.sync_dir(dir).map_err(FileError::of("sync", dir))
}

/// Gives `path` a new content, durably, and all of it or nothing. `unique` is as in [`Draft::create`].
///
/// # Errors
/// As [`Draft::create`], [`Draft::write`] and [`Draft::place`].
pub fn replace(
    vfs: &Arc<dyn Vfs>,
    path: &Path,
    unique: impl Display,
    parts: &[&[u8]],
) -> Result<(), FileError> {
    let mut draft = Draft::create(vfs, path.to_owned(), unique)?;
    for part in parts {
        draft.write(part)?;
    }
    draft.place().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimVfs;
    use crate::steps::{End, at_every_step};

    #[test]
    fn at_every_step_there_is_the_old_content_or_the_new() {
        let (dir, path) = (Path::new("/data"), Path::new("/data/file"));
        let (old, new) = (vec![1; 1500], vec![2; 1200]);
        let put = |disk: &SimVfs| {
            let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
            replace(&vfs, path, 0, &[&new[..700], &new[700..]])
        };
        let disk = SimVfs::new(1);
        disk.create_dir_all(dir).unwrap();
        disk.plant(path, old.clone());
        at_every_step(&disk, put, |disk, said, end| {
            let content = disk.content(path).expect("it never goes");
            assert!(content == old || content == new, "{end:?}");
            assert!(said.is_err() || content == new, "{end:?}");
            if end == End::CallFailed {
                assert_eq!(disk.files(), [path], "a failed call leaves no rubbish");
            }
            put(disk).expect("a draft that a crash left is no hindrance");
            assert_eq!(disk.content(path).as_ref(), Some(&new));
            assert_eq!(disk.files(), [path]);
        });
    }

    /// The system reports a failed write to the disk once, and takes the bytes for written from then on.
    #[test]
    fn a_draft_that_could_not_be_synced_never_gets_its_name() {
        let disk = SimVfs::new(1);
        disk.create_dir_all(Path::new("/data")).unwrap();
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let mut draft = Draft::create(&vfs, "/data/file".into(), 7).unwrap();
        let content = vec![1; SYNC_STEP as usize];
        let writes = (content.len() / WRITE_STEP) as u64;
        disk.fail_call(disk.calls() + writes + 1, io::ErrorKind::Other);
        assert_eq!(draft.write(&content).unwrap_err().action, "sync");
        assert_eq!(draft.write(&content).unwrap_err().action, "sync");
        assert_eq!(draft.place().unwrap_err().action, "sync");
        assert!(disk.files().is_empty());
    }

    #[test]
    fn a_dropped_draft_leaves_nothing() {
        let disk = SimVfs::new(1);
        disk.create_dir_all(Path::new("/data")).unwrap();
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let mut draft = Draft::create(&vfs, "/data/file".into(), 7).unwrap();
        draft.write(b"half").unwrap();
        assert_eq!(disk.files(), [draft.temporary()]);
        drop(draft);
        assert!(disk.files().is_empty());
    }
}
