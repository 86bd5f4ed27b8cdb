//! Files and directories that nobody but this process' user reads or writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// A new file. An error if there is one, or a link.
pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Creates the directory if need be, and closes it to others. Whether others could write to it until now.
///
/// # Errors
/// If it belongs to another user.
pub(crate) fn directory(dir: &Path) -> io::Result<bool> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)?;
    close(dir)
}

#[cfg(unix)]
fn close(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let metadata = fs::metadata(dir)?;
    if metadata.uid() != own_user() {
        let (owner, own) = (metadata.uid(), own_user());
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it belongs to user {owner}, and this process is user {own}'s"),
        ));
    }
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(mode & 0o022 != 0)
}

#[cfg(not(unix))]
fn close(_: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Whether only this process' user can read the file, and change who can.
#[cfg(unix)]
pub(crate) fn is_private(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let metadata = file.metadata()?;
    Ok(metadata.uid() == own_user() && metadata.permissions().mode() & 0o077 == 0)
}

#[cfg(not(unix))]
pub(crate) fn is_private(_: &File) -> io::Result<bool> {
    Ok(true)
}

#[cfg(unix)]
fn own_user() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}
