//! Where a node's ticks come from.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock::{self, Metronome};
use crate::shards::router::Router;
use crate::supervisor::Supervisor;

/// Where ticks come from (`Config.Ticker` of the seed package). One tick reaches every shard once and counts for all its
/// groups; a shard that is late sees several as one.
pub enum Ticker {
    /// A thread of the node ticks at this period.
    Every(Duration),
    /// The caller owns time: one message is one tick. When the channel closes, time stands still.
    Channel(mpsc::Receiver<()>),
}

impl Default for Ticker {
    fn default() -> Self {
        Self::Every(Duration::from_millis(100))
    }
}

impl fmt::Debug for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(period) => f.debug_tuple("Every").field(period).finish(),
            Self::Channel(_) => f.write_str("Channel"),
        }
    }
}

/// A ticker at work; ends when it is dropped.
pub(crate) enum Ticking {
    Thread { _metronome: Metronome },
    Task { _stop: oneshot::Sender<()> },
}

impl Ticking {
    /// Must be called in a tokio runtime.
    pub(crate) fn start(
        ticker: Ticker,
        router: &Arc<Router>,
        supervisor: Supervisor,
    ) -> io::Result<Self> {
        let router = Arc::clone(router);
        // A tick that panics is one tick that is lost.
        let tick = move || {
            let ticked = supervisor.round("ticker", || router.tick(clock::now()));
            ticked.unwrap_or_default()
        };
        match ticker {
            Ticker::Every(period) => {
                let _metronome = Metronome::start(period, tick)?;
                Ok(Self::Thread { _metronome })
            }
            Ticker::Channel(mut ticks) => {
                let (_stop, mut stopped) = oneshot::channel::<()>();
                tokio::spawn(async move {
                    loop {
                        tokio::select! {
                            _ = &mut stopped => return,
                            received = ticks.recv() => match received {
                                Some(()) => tick(),
                                None => return,
                            },
                        }
                    }
                });
                Ok(Self::Task { _stop })
            }
        }
    }
}
