//! Builds the example guests.

fn main() -> Result<(), skep_guest_build::Error> {
    skep_guest_build::Guests::new()
        .package("skep-example-kv")
        .build()?
        .export_env();
    Ok(())
}
