//! Hostile guests, one file per attack, and what they have in common: a small counter that behaves.
//!
//! Every guest answers these commands like an honest machine, so that a test can see its group go on after an attack.
//! `get`, `ping` and `echo` are queries too.
//!
//! | request | answer |
//! |---|---|
//! | `ping` | `pong` |
//! | `add` or `add N` | the counter in decimal, after adding 1 or N (i64, wrapping) |
//! | `get` | the counter |
//! | `echo BYTES` | the bytes |
//! | anything else | rejection 400 |

use skep_guest::{ConfChange, Context, Descriptor, Machine, Rejection, Sink, Source, StatusChange};

/// The code of the rejection of an unknown request.
pub const UNKNOWN: u32 = 400;

/// What a hostile guest adds to the counter. Each hook may attack; what it leaves alone goes on to the counter.
pub trait Attack: Default + 'static {
    /// The name in the descriptor.
    const NAME: &'static str;

    /// Sees every command first. `None` leaves it to the counter.
    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        let _ = (ctx, request);
        None
    }

    /// Sees every query first. `None` leaves it to the counter.
    fn query(&self, ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        let _ = (ctx, request);
        None
    }

    /// Runs when the machine is described.
    fn describe() {}

    /// Runs on the configuration of a new group.
    fn init(&mut self, config: &[u8]) {
        let _ = config;
    }

    /// Writes the attack's own state behind the counter.
    fn save(&self, to: &mut Sink<'_>) {
        let _ = to;
    }

    /// Reads what [`save`](Attack::save) wrote.
    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let _ = from;
        Ok(Self::default())
    }

    /// Runs on every change of configuration.
    fn conf_changed(&mut self) {}

    /// Runs on every change of leader.
    fn status_changed(&mut self) {}
}

/// The counter with an attack in front.
#[derive(Default)]
pub struct Guest<A> {
    attack: A,
    total: i64,
}

impl<A: Attack> Machine for Guest<A> {
    fn describe() -> Descriptor {
        A::describe();
        Descriptor {
            name: A::NAME,
            version: env!("CARGO_PKG_VERSION"),
            schema: 1,
            oldest_schema: 1,
        }
    }

    fn init(&mut self, _ctx: &Context, config: &[u8]) -> Result<(), Rejection> {
        self.attack.init(config);
        Ok(())
    }

    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some(answer) = self.attack.apply(ctx, request) {
            return answer;
        }
        let Some(number) = addend(request) else {
            return self.read(request);
        };
        self.total = self.total.wrapping_add(number);
        self.read(b"get")
    }

    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        self.attack
            .query(ctx, request)
            .unwrap_or_else(|| self.read(request))
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        to.put_i64(self.total);
        self.attack.save(to);
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        let total = from.take_i64()?;
        let attack = A::restore(from)?;
        from.finish()?;
        Ok(Guest { attack, total })
    }

    fn apply_conf_change(&mut self, _ctx: &Context, _change: &ConfChange) -> Result<(), Rejection> {
        self.attack.conf_changed();
        Ok(())
    }

    fn process_status_change(&mut self, _ctx: &Context, _event: &StatusChange) {
        self.attack.status_changed();
    }
}

impl<A> Guest<A> {
    fn read(&self, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        match request {
            b"ping" => Ok(b"pong".to_vec()),
            b"get" => Ok(self.total.to_string().into_bytes()),
            _ => match request.strip_prefix(b"echo ") {
                Some(bytes) => Ok(bytes.to_vec()),
                None => Err(Rejection::new(UNKNOWN, "unknown request")),
            },
        }
    }
}

/// The number behind a word: `number(b"add 5", "add")` is 5. `None` when the request is another.
pub fn number(request: &[u8], word: &str) -> Option<i64> {
    std::str::from_utf8(request)
        .ok()?
        .strip_prefix(word)?
        .strip_prefix(' ')?
        .parse()
        .ok()
}

/// Ends the call with the trap that the `unreachable` instruction raises, without the log line of a panic. Natively a
/// panic.
pub fn trap() -> ! {
    #[cfg(target_family = "wasm")]
    std::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    panic!("a trap, as asked for");
}

fn addend(request: &[u8]) -> Option<i64> {
    if request == b"add" {
        Some(1)
    } else {
        number(request, "add")
    }
}

#[cfg(test)]
mod tests {
    use skep_guest::testing::{Harness, Step, replay_matches};

    use super::*;

    #[derive(Default)]
    struct Peaceful;

    impl Attack for Peaceful {
        const NAME: &'static str = "peaceful";
    }

    #[test]
    fn the_counter_behaves() {
        let mut guest = Harness::<Guest<Peaceful>>::new();
        assert_eq!(guest.apply("ping").unwrap(), b"pong");
        assert_eq!(guest.apply("add").unwrap(), b"1");
        assert_eq!(guest.apply("add -3").unwrap(), b"-2");
        assert_eq!(guest.apply("echo a b").unwrap(), b"a b");
        assert_eq!(guest.query("get").unwrap(), b"-2");
        assert_eq!(guest.apply("boo").unwrap_err().code, UNKNOWN);
        replay_matches::<Guest<Peaceful>>(&["add", "boo", "add 7", "get"].map(Step::apply))
            .unwrap();
    }
}
