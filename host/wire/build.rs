//! Compiles the protocol files in Rust, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] = ["raft.proto", "proposal.proto", "peer.proto", "client.proto"];
    for file in FILES {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Every `bytes` field is a slice of the frame it came in: what is only passed on is never copied.
    prost_build::Config::new()
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
