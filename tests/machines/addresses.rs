//! Gives each job to the free worker whose name lies lowest in memory, and answers `ok`: who that is depends on what was freed
//! before, and only a query shows it. `save` writes everything, in order.
//!
//! `work WORKER` frees one, `job JOB` takes one, the query `show` lists the jobs.

use std::collections::BTreeMap;

use skep_guest::{Context, Descriptor, Machine, Rejection, Sink, Source};
use skep_test_machines::{UNKNOWN, descriptor};

#[derive(Default)]
struct Dispatcher {
    /// By where the name lies.
    free: BTreeMap<usize, Box<[u8]>>,
    jobs: BTreeMap<Vec<u8>, Box<[u8]>>,
}

impl Dispatcher {
    fn work(&mut self, worker: &[u8]) {
        if !self.free.values().any(|free| **free == *worker) {
            let name: Box<[u8]> = worker.into();
            self.free.insert(name.as_ptr().addr(), name);
        }
    }
}

impl Machine for Dispatcher {
    fn describe() -> Descriptor {
        descriptor("addresses")
    }

    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if let Some(worker) = request.strip_prefix(b"work ") {
            self.work(worker);
            return Ok(b"ok".to_vec());
        }
        let Some(job) = request.strip_prefix(b"job ") else {
            return self.query(ctx, request);
        };
        if let Some((_, worker)) = self.free.pop_first() {
            self.jobs.insert(job.to_vec(), worker);
        }
        Ok(b"ok".to_vec())
    }

    fn query(&self, _ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        if request != b"show" {
            return Err(Rejection::new(
                UNKNOWN,
                "one of: work WORKER, job JOB, show",
            ));
        }
        let jobs = self.jobs.iter();
        let jobs: Vec<_> = jobs
            .map(|(job, worker)| [&job[..], b"=", worker].concat())
            .collect();
        Ok(jobs.join(&b' '))
    }

    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
        let mut free: Vec<_> = self.free.values().collect();
        free.sort_unstable();
        to.put_u32(free.len() as u32);
        for worker in free {
            to.put_bytes(worker);
        }
        to.put_u32(self.jobs.len() as u32);
        for (job, worker) in &self.jobs {
            to.put_bytes(job);
            to.put_bytes(worker);
        }
        Ok(())
    }

    fn restore(_schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
        let mut restored = Self::default();
        for _ in 0..from.take_u32()? {
            restored.work(&from.take_bytes()?);
        }
        for _ in 0..from.take_u32()? {
            let (job, worker) = (from.take_bytes()?, from.take_bytes()?);
            restored.jobs.insert(job, worker.into());
        }
        Ok(restored)
    }
}

skep_guest::export!(Dispatcher);
