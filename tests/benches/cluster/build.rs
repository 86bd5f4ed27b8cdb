//! The binary that `served` measures.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Builds `skep` under the profile of this program. Cargo builds only the libraries for a benchmark of another package,
/// so the binary beside them may be missing, or older than they are.
///
/// # Errors
/// If it cannot be built. Without cargo, what was built before is measured.
pub fn skep() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        eprintln!("not run by cargo: `served` measures the binary that was built before");
        return Ok(());
    };
    // target/<profile>/deps/cluster-<hash>
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let profile_dir = own.parent().and_then(Path::parent);
    let profile = profile_dir.and_then(Path::file_name);
    let target_dir = profile_dir.and_then(Path::parent);
    let (Some(profile), Some(target_dir)) = (profile, target_dir) else {
        anyhow::bail!("{} does not lie in a target directory", own.display());
    };
    let profile = match profile.to_str() {
        // The one profile whose directory has another name.
        Some("debug") => "dev".as_ref(),
        _ => profile,
    };
    let status = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "-p",
            "skep-cli",
            "--bin",
            "skep",
            "--profile",
        ])
        .arg(profile)
        .arg("--target-dir")
        .arg(target_dir)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the binary could not be built ({status})");
    Ok(())
}
