//! Builds the hostile guests.

/// One file each in `tests/guests`.
const GUESTS: [&str; 9] = [
    "clockwork",
    "exits",
    "giant_reply",
    "hoards",
    "loops",
    "noisy",
    "recurses",
    "traps",
    "traps_describe",
];

fn main() -> Result<(), skep_guest_build::Error> {
    skep_guest_build::Guests::new()
        .examples("skep-test-guests", GUESTS)
        .build()?
        .write_constants()
}
