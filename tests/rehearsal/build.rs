//! Builds every machine of `tests/machines`.

use std::env;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo says it"))
        .join("../machines");
    println!("cargo::rerun-if-changed={}", directory.display());
    let mut names = Vec::new();
    for file in std::fs::read_dir(&directory)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    skep_guest_build::Guests::new()
        .examples("skep-test-machines", names.iter().map(String::as_str))
        .build()?
        .write_constants()?;
    Ok(())
}
