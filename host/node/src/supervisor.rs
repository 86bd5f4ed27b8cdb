//! Tasks that do not die silently: each has a name, is counted while it runs, and begins again after a panic.
//!
//! A panic is a bug of the host. It must neither end for ever what the node needs, nor go unseen: it is logged and
//! counted, and the task is made anew after a pause that grows while it keeps on panicking. What cannot be made anew is
//! reported, and the node says that it is not ready.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use skep_types::shared::lock;

use crate::clock::{self, Stopwatch};
use crate::panics::panic_text;

/// First and longest pause before a task that panicked begins again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A task that ran as long as this is taken for well, and its next pause is the first again.
const WELL: Duration = Duration::from_secs(60);

/// Who watches the tasks of one node. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    tasks: Arc<Mutex<BTreeMap<&'static str, Tasks>>>,
}

/// All tasks of one name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tasks {
    /// Those that run, or wait to begin again.
    pub running: u64,
    /// How often one has panicked.
    pub panics: u64,
    /// Why one has ended that cannot begin again.
    pub lost: Option<String>,
}

impl Supervisor {
    /// Runs what `make` makes, again after each panic, until it ends by itself.
    pub async fn keep<F: Future>(
        &self,
        name: &'static str,
        mut make: impl FnMut() -> F,
    ) -> F::Output {
        let _running = self.running(name);
        let mut panics_in_a_row = 0;
        loop {
            let watch = Stopwatch::start();
            // Making it may panic too.
            let run = async { make().await };
            match AssertUnwindSafe(run).catch_unwind().await {
                Ok(output) => return output,
                Err(panic) => {
                    if watch.elapsed() >= WELL {
                        panics_in_a_row = 0;
                    }
                    panics_in_a_row += 1;
                    let pause = clock::doubled(PAUSE, panics_in_a_row);
                    self.count(name);
                    tracing::error!(
                        task = name,
                        panic = panic_text(&*panic),
                        again_in_ms = pause.as_millis() as u64,
                        "a task panicked and begins again; please report this"
                    );
                    clock::sleep(pause).await;
                }
            }
        }
    }

    /// Runs a task whose end concerns nobody else, such as that of one connection; `None` if it panicked.
    pub async fn once<F: Future>(&self, name: &'static str, task: F) -> Option<F::Output> {
        let _running = self.running(name);
        match AssertUnwindSafe(task).catch_unwind().await {
            Ok(output) => Some(output),
            Err(panic) => {
                self.panicked(name, panic_text(&*panic));
                None
            }
        }
    }

    /// One round of a thread that goes on after it; `None` if it panicked.
    pub fn round<T>(&self, name: &'static str, round: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(round)) {
            Ok(value) => Some(value),
            Err(panic) => {
                self.panicked(name, panic_text(&*panic));
                None
            }
        }
    }

    /// A task has ended that the node needs and that cannot begin again.
    pub fn lost(&self, name: &'static str, why: impl Into<String>) {
        let why = why.into();
        tracing::error!(
            task = name,
            why,
            "a task has ended that this node needs; restart the node"
        );
        lock(&self.tasks).entry(name).or_default().lost = Some(why);
    }

    /// All tasks by name, those that have ended included.
    pub fn all(&self) -> BTreeMap<&'static str, Tasks> {
        lock(&self.tasks).clone()
    }

    /// What the node lacks, in words; empty if nothing.
    pub fn missing(&self) -> Vec<String> {
        lock(&self.tasks)
            .iter()
            .filter_map(|(name, tasks)| {
                let why = tasks.lost.as_ref()?;
                Some(format!(
                    "the task {name}, which has ended ({why}); restart the node"
                ))
            })
            .collect()
    }

    fn panicked(&self, name: &'static str, panic: &str) {
        self.count(name);
        tracing::error!(task = name, panic, "a task panicked; please report this");
    }

    fn count(&self, name: &'static str) {
        lock(&self.tasks).entry(name).or_default().panics += 1;
    }

    fn running(&self, name: &'static str) -> Running {
        lock(&self.tasks).entry(name).or_default().running += 1;
        Running {
            supervisor: self.clone(),
            name,
        }
    }
}

/// One that runs; counted down on every way out.
struct Running {
    supervisor: Supervisor,
    name: &'static str,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(tasks) = lock(&self.supervisor.tasks).get_mut(self.name) {
            tasks.running -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(supervisor: &Supervisor) -> u64 {
        supervisor.all()["task"].panics
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again_until_it_ends_by_itself() {
        let supervisor = Supervisor::default();
        let mut begun = 0;
        let ended = supervisor.keep("task", || {
            begun += 1;
            let panics = begun < 4;
            async move {
                tokio::task::yield_now().await;
                assert!(!panics, "on purpose");
                7
            }
        });
        assert_eq!(ended.await, 7);
        assert_eq!(panics(&supervisor), 3);
        assert_eq!(supervisor.all()["task"].running, 0);
        assert!(supervisor.missing().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn making_a_task_may_panic_too_and_a_dropped_one_is_counted_down() {
        let supervisor = Supervisor::default();
        let mut begun = 0;
        let never = supervisor.keep("task", || {
            begun += 1;
            assert!(begun > 1, "on purpose");
            std::future::pending::<()>()
        });
        assert!(
            clock::timeout(Duration::from_secs(5), never)
                .await
                .is_none()
        );
        assert_eq!(
            supervisor.all()["task"],
            Tasks {
                running: 0,
                panics: 1,
                lost: None
            }
        );
    }

    #[tokio::test]
    async fn what_concerns_nobody_else_ends_alone() {
        let supervisor = Supervisor::default();
        assert_eq!(supervisor.once("task", async { 1 }).await, Some(1));
        let panicked: Option<()> = supervisor
            .once("task", async { panic!("on purpose") })
            .await;
        assert_eq!(panicked, None);
        assert_eq!(supervisor.round("task", || 2), Some(2));
        assert_eq!(
            supervisor.round::<()>("task", || panic!("on purpose")),
            None
        );
        assert_eq!(panics(&supervisor), 2);
        assert!(supervisor.missing().is_empty());
    }

    #[test]
    fn what_is_lost_is_said() {
        let supervisor = Supervisor::default();
        supervisor.lost("ticker", "no thread");
        let missing = supervisor.missing();
        assert!(
            missing[0].contains("ticker") && missing[0].contains("restart"),
            "{missing:?}"
        );
    }
}
