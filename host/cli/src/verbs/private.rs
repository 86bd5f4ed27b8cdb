//! What a node keeps is for its own user alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// The bits that let others in.
const OTHERS: u32 = 0o077;

/// From now on this process makes no file that others may read.
pub fn mask() {
    // SAFETY: it takes a number and touches no memory of ours.
    unsafe { libc::umask(OTHERS as libc::mode_t) };
}

/// Whether what this process makes belongs to this user.
pub fn is_own(user: u32) -> bool {
    // SAFETY: it takes nothing and touches no memory of ours.
    unsafe { libc::geteuid() == user }
}

/// Shuts others out of a data directory that was there before, and of what is in it.
pub fn enforce(data_dir: &Path) {
    for dir in ["", "wal", "snap", "components", "compiled"] {
        let dir = data_dir.join(dir);
        match shut(&dir) {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(dir = %dir.display(), "others could read this directory; now they cannot");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "others may read this directory, and that cannot be changed; give it to the node's user with mode 0700");
            }
        }
    }
}

/// Makes a file that nobody else may read, and that must not be there.
pub fn create(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Whether it was open.
fn shut(dir: &Path) -> io::Result<bool> {
    let mode = std::fs::metadata(dir)?.permissions().mode();
    if mode & OTHERS == 0 {
        return Ok(false);
    }
    std::fs::set_permissions(dir, PermissionsExt::from_mode(mode & !OTHERS & 0o7777))?;
    Ok(true)
}
