//! What a store says of its lives, on the wire.

use skep_core::past::{Durable, Life, Past};
use skep_wire::WireError;
use skep_wire::proto;

/// Turns what a store says of itself into what is sent.
pub fn past_to_wire(past: &Past) -> proto::Past {
    proto::Past {
        life: past.present().map_or(0, |life| life.number),
        nonces: past.lives.iter().map(|life| life.nonce).collect(),
        began: past.lives.iter().map(|life| life.began.0).collect(),
        durable: past.durable.0,
    }
}

/// Understands what a store says of itself. Whoever says nothing has no past.
///
/// # Errors
/// If it makes no sense.
pub fn past_from_wire(past: Option<proto::Past>) -> Result<Past, WireError> {
    let past = past.unwrap_or_default();
    let senseless = WireError::Misplaced("the lives of a store do not follow one another");
    let before = past.life.checked_sub(past.nonces.len() as u64);
    let Some(before) = before.filter(|_| past.nonces.len() == past.began.len()) else {
        return Err(senseless);
    };
    let lives = past.nonces.iter().zip(&past.began).zip(before + 1..);
    let past = Past {
        lives: lives
            .map(|((nonce, began), number)| Life {
                number,
                nonce: *nonce,
                began: Durable(*began),
            })
            .collect(),
        durable: Durable(past.durable),
    };
    match past.is_sound() {
        true => Ok(past),
        false => Err(senseless),
    }
}
