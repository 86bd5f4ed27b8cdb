//! What systemd is told of a node that it runs as `Type=notify`: what the node waits for, that it is ready, that it lives, and
//! that it stops. `host/deploy/skep.service` is such a unit.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use skep::clock;
use skep_server::catalog;
use skep_server::cluster::{Host, Waiting};
use tokio_util::sync::CancellationToken;

/// Between two looks at whether the node is ready, and that it lives; shorter where the watchdog wants it.
const LOOK: Duration = Duration::from_secs(1);

/// Tells systemd for whom a node waits that belongs to no cluster yet. Most wait for no time worth a word.
pub async fn tell_waiting(waiting: Waiting) -> Infallible {
    while listens() {
        clock::sleep(LOOK).await;
        say_waiting(&waiting.waiting_for());
    }
    std::future::pending().await
}

/// Tells systemd how the node is until it stops. Does nothing where none listens.
pub async fn tell(host: Host, stop: CancellationToken) {
    if !listens() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let pause = watchdog.map_or(LOOK, |within| LOOK.min(within / 3));
    let mut ready = false;
    let told = async {
        loop {
            if !ready {
                ready = tell_readiness(&host.waiting_for());
            }
            if watchdog.is_some() && lives(&host, pause).await {
                say(&[NotifyState::Watchdog]);
            }
            clock::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(told).await;
    say(&[NotifyState::Stopping]);
}

fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Whether the node is ready.
fn tell_readiness(waiting_for: &[String]) -> bool {
    if waiting_for.is_empty() {
        say(&[NotifyState::Ready, NotifyState::Status("serving")]);
        return true;
    }
    say_waiting(waiting_for);
    false
}

fn say_waiting(waiting_for: &[String]) {
    let status = format!("waiting for {}", waiting_for.join(", "));
    say(&[NotifyState::Status(&status.replace('\n', " "))]);
}

/// Whether the threads of the node still turn: this task was run, and the shard of the catalogue answers, whatever it says.
async fn lives(host: &Host, within: Duration) -> bool {
    let asked = host.node().status(catalog::GROUP);
    clock::timeout(within, asked).await.is_some()
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd is not told how the node is");
    }
}
