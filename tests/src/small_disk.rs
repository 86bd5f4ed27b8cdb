//! Small file systems, which are soon full.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A small file system. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of this size at a directory, which is made where it is missing.
    ///
    /// # Errors
    /// Where nobody may mount one: that takes root, and Linux.
    #[cfg(target_os = "linux")]
    pub fn mount(at: &Path, bytes: u64) -> io::Result<Self> {
        use std::ffi::CString;

        std::fs::create_dir_all(at)?;
        let path = c_path(at)?;
        let options = CString::new(format!("size={bytes}"))?;
        // SAFETY: four strings that end with a zero and outlive the call.
        let mounted = unsafe {
            libc::mount(
                c"skep-test".as_ptr(),
                path.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        match mounted {
            0 => Ok(Self { at: at.to_owned() }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Mounts one.
    ///
    /// # Errors
    /// Always here.
    #[cfg(not(target_os = "linux"))]
    pub fn mount(_: &Path, _: u64) -> io::Result<Self> {
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Ok(path) = c_path(&self.at) {
            // SAFETY: a string that ends with a zero. Detached, so that a process that is just being killed does not keep it.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

#[cfg(target_os = "linux")]
fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::CString::new(path.as_os_str().as_bytes())?)
}

/// The file that fills a disk.
const BALLAST: &str = "ballast";

/// Fills the small disk that a directory is on, to the last byte.
///
/// # Panics
/// If its file cannot be made, or writing it fails for another reason.
pub fn fill(dir: &Path) {
    let mut file = File::create(dir.join(BALLAST)).expect("a file on the small disk");
    // Ever smaller pieces, until not even one byte fits.
    let block = vec![0xaa; 64 << 10];
    let mut piece = block.len();
    while piece > 0 {
        match file.write(&block[..piece]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => piece /= 2,
            Err(error) => panic!("the small disk: {error}"),
        }
    }
}

/// Fills the small disk that a directory is on until so many bytes are left.
///
/// # Panics
/// If the disk cannot be looked at, or the file not be written.
#[cfg(target_os = "linux")]
pub fn fill_but(dir: &Path, left: u64) {
    let path = c_path(dir).expect("a path without zeros");
    // SAFETY: plain numbers, for which zero is a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both outlive the call; the path ends with a zero.
    let looked = unsafe { libc::statvfs(path.as_ptr(), &raw mut found) };
    assert_eq!(looked, 0, "{}", io::Error::last_os_error());
    let ballast = (found.f_bavail * found.f_frsize).saturating_sub(left);
    std::fs::write(dir.join(BALLAST), vec![0; ballast as usize]).expect("there is room");
}

/// Makes room again on a disk that was filled here.
///
/// # Panics
/// If it was not filled.
pub fn clear(dir: &Path) {
    std::fs::remove_file(dir.join(BALLAST)).expect("the ballast");
}
