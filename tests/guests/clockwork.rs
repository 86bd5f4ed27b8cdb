//! Looks at everything that differs between machines: `tick` answers with both clocks, the order of a hash map,
//! randomness and the environment; replicas must give the same answer. `sleep N` sleeps N seconds by the standard
//! library and answers `awake`; on a host that takes no time. `tick` is a query as well.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_guest::{Context, Rejection, Sink, Source, entropy};
use skep_test_guests::{Attack, Guest, number};

/// The ticks seen, in a map whose order depends on the process's hash seed.
#[derive(Default)]
struct Clockwork {
    ticks: HashMap<u64, u64>,
}

impl Attack for Clockwork {
    const NAME: &'static str = "clockwork";

    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        if let Some(seconds) = number(request, "sleep") {
            std::thread::sleep(Duration::from_secs(seconds.try_into().ok()?));
            return Some(Ok(b"awake".to_vec()));
        }
        if request != b"tick" {
            return None;
        }
        for step in 0..8 {
            self.ticks
                .insert(ctx.index.wrapping_mul(8) + step, entropy::next_u64());
        }
        Some(Ok(self.observe(ctx)))
    }

    fn query(&self, ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        (request == b"tick").then(|| Ok(self.observe(ctx)))
    }

    fn save(&self, to: &mut Sink<'_>) {
        let mut ticks: Vec<(&u64, &u64)> = self.ticks.iter().collect();
        ticks.sort_unstable();
        to.put_u64(ticks.len() as u64);
        for (tick, value) in ticks {
            to.put_u64(*tick);
            to.put_u64(*value);
        }
    }

    fn restore(from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut ticks = HashMap::new();
        for _ in 0..from.take_u64()? {
            ticks.insert(from.take_u64()?, from.take_u64()?);
        }
        Ok(Clockwork { ticks })
    }
}

impl Clockwork {
    fn observe(&self, ctx: &Context) -> Vec<u8> {
        let start = Instant::now();
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let order: Vec<&u64> = self.ticks.keys().collect();
        let mut bytes = [0; 16];
        entropy::fill(&mut bytes);
        let environment: Vec<_> = std::env::vars_os().collect();
        let arguments: Vec<_> = std::env::args_os().collect();
        let elapsed = start.elapsed();
        format!(
            "now={} wall={} elapsed={} random={bytes:02x?} environment={environment:?} arguments={arguments:?} \
             order={order:?}",
            ctx.now,
            wall.as_nanos(),
            elapsed.as_nanos()
        )
        .into_bytes()
    }
}

skep_guest::export!(Guest<Clockwork>);
