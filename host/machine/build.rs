//! Tells the crate which target it is built for: the engine names it, so that wasmtime compiles guests for it with a
//! fixed set of instructions instead of whatever the processor at hand offers.

fn main() {
    let target = std::env::var("TARGET").expect("cargo sets TARGET for build scripts");
    println!("cargo:rustc-env=SKEP_MACHINE_TARGET={target}");
    println!("cargo:rerun-if-changed=build.rs");
}
