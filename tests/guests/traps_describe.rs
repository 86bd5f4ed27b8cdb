//! Traps when the host asks who it is, which it does before it takes a component in.

use skep_test_guests::{Attack, Guest, trap};

#[derive(Default)]
struct TrapsDescribe;

impl Attack for TrapsDescribe {
    const NAME: &'static str = "traps-describe";

    fn describe() {
        trap();
    }
}

skep_guest::export!(Guest<TrapsDescribe>);
