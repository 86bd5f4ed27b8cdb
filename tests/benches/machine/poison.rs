//! What commands that fail take from those that do not: one group on one node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use anyhow::Context;
use bytes::Bytes;
use skep::clock::Stopwatch;
use skep::transport::{Reporter, Transport};
use skep::{
    Batch, Command, Config, Consistency, EntryContext, GroupConfig, GroupId, MultiNode, NodeId,
    Outcome, Peer, StateMachine,
};
use skep_core::id::{RequestId, SessionId};
use skep_core::message::PeerMessage;
use skep_log::SnapshotFile;
use skep_machine::wasm::{Component, MachineLabel, Profile, WasmMachine};
use skep_tests::clock::eventually;

const GROUP: GroupId = GroupId(1);

/// Bytes of one value.
const VALUE: usize = 1 << 10;

/// States.
const MEBIBYTES: [usize; 2] = [16, 200];

/// Clients without fault, each with one command under way.
const CLIENTS: u64 = 9;

/// Commands of each of them.
const COMMANDS: u64 = 400;

/// A reply longer than [`REPLY_MAX`]: the machine fails on it.
const POISON: &str = "get long";
const REPLY_MAX: u32 = 4 << 10;

/// Who sends poison.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Poison {
    Nobody,
    /// A client that sends nothing else.
    OneClient,
    /// Everybody, each tenth command.
    OneInTen,
}

/// A single node has nobody to speak to.
struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _: Batch, _: &Arc<dyn Reporter>) {}

    fn send_snapshot(
        &self,
        _: NodeId,
        _: PeerMessage,
        _: Arc<SnapshotFile>,
        _: &Arc<dyn Reporter>,
    ) {
    }
}

/// Prints the rate of good commands without and with poison, and fails if the state is another one for it.
pub fn run(component: &Arc<Component>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    println!("\npoison: {CLIENTS} clients with {COMMANDS} good commands each");
    println!("   state                             good/s   poison    answers");
    for mebibytes in MEBIBYTES {
        let mut clean = None;
        for (name, poison) in [
            ("no poison", Poison::Nobody),
            ("one client, poison only", Poison::OneClient),
            ("each tenth of everybody", Poison::OneInTen),
        ] {
            let case = case(Arc::clone(component), (mebibytes << 20) / VALUE, poison);
            let (rate, poisoned, state) = runtime.block_on(case)?;
            let clean = clean.get_or_insert_with(|| state.clone());
            anyhow::ensure!(
                *clean == state,
                "the state differs: {clean:?} and {state:?}"
            );
            println!("{mebibytes:>4} MiB  {name:<24} {rate:>9.0} {poisoned:>8}    equal");
        }
    }
    Ok(())
}

async fn case(
    component: Arc<Component>,
    values: usize,
    poison: Poison,
) -> anyhow::Result<(f64, u64, Vec<String>)> {
    let dir = tempfile::tempdir()?;
    let config = Config::new(NodeId(1), "one", "bench", dir.path());
    let node = MultiNode::start(config, |_| Ok(Arc::new(Nowhere) as Arc<dyn Transport>)).await?;
    let profile = Profile {
        reply_bytes: REPLY_MAX,
        ..Profile::default()
    };
    let label = MachineLabel::default();
    let machine = tokio::task::spawn_blocking(move || {
        WasmMachine::new(component, profile, EntryContext::default(), label)
    })
    .await??;
    let machine: Box<dyn StateMachine> = Box::new(machine);
    let peer = Peer {
        node: NodeId(1),
        data: Bytes::new(),
    };
    node.create_group(GroupConfig::new(GROUP, "poison", machine, vec![peer]))
        .await?;
    eventually("the group has a leader", async || {
        let leader = node.leader(GROUP).map_err(|error| error.to_string())?;
        leader.ok_or_else(|| "none".to_owned())
    })
    .await;
    fill(&node, values).await?;
    let ended = AtomicBool::new(false);
    let poisoned = AtomicU64::new(0);
    let watch = Stopwatch::start();
    let good = futures::future::try_join_all((0..CLIENTS).map(|name| {
        let (node, poisoned) = (&node, &poisoned);
        async move {
            let mut client = Client::open(node).await?;
            for n in 0..COMMANDS {
                client.good(&format!("put load-{name}-{n} {n}")).await?;
                if poison == Poison::OneInTen && n % 9 == 8 {
                    client.poison().await?;
                    poisoned.fetch_add(1, SeqCst);
                }
            }
            anyhow::Ok(())
        }
    }));
    let attack = async {
        if poison == Poison::OneClient {
            let mut client = Client::open(&node).await?;
            while !ended.load(SeqCst) {
                client.poison().await?;
                poisoned.fetch_add(1, SeqCst);
            }
        }
        anyhow::Ok(())
    };
    let good = async {
        good.await?;
        let took = watch.elapsed();
        ended.store(true, SeqCst);
        anyhow::Ok(took)
    };
    let (took, ()) = futures::future::try_join(good, attack).await?;
    let mut state = Vec::new();
    let scans = (0..CLIENTS).map(|name| format!("scan load-{name}- 100"));
    for query in ["count", "count load-"]
        .map(str::to_owned)
        .into_iter()
        .chain(scans)
    {
        let answer = node
            .query(GROUP, Bytes::from(query), Consistency::Linearizable)
            .await?;
        state.push(without_versions(&reply(answer.outcome)?)?);
    }
    node.stop().await;
    let rate = (CLIENTS * COMMANDS) as f64 / took.as_secs_f64();
    Ok((rate, poisoned.load(SeqCst), state))
}

async fn fill(node: &MultiNode, values: usize) -> anyhow::Result<()> {
    let value = "x".repeat(VALUE);
    for first in (0..values).step_by(512) {
        let puts = (first..first + 512).map(|key| {
            let put = Bytes::from(format!("put key-{key} {value}"));
            node.propose(GROUP, put)
        });
        for response in futures::future::try_join_all(puts).await? {
            reply(response.outcome)?;
        }
    }
    let long = "x".repeat(2 * REPLY_MAX as usize);
    let put = Bytes::from(format!("put long {long}"));
    reply(node.propose(GROUP, put).await?.outcome)?;
    node.snapshot(GROUP).await?;
    Ok(())
}

/// An answer without the versions of its items, which depend on who of the clients came first.
fn without_versions(answer: &[u8]) -> anyhow::Result<String> {
    let lines = std::str::from_utf8(answer)?.lines();
    let lines = lines.map(|line| match *line.split(' ').collect::<Vec<_>>() {
        [key, _version, length] => format!("{key} {length}\n"),
        _ => format!("{line}\n"),
    });
    Ok(lines.collect())
}

fn reply(outcome: Outcome) -> anyhow::Result<Bytes> {
    match outcome {
        Outcome::Reply(reply) => Ok(reply),
        other => anyhow::bail!("not done: {other:?}"),
    }
}

struct Client<'a> {
    node: &'a MultiNode,
    session: SessionId,
    sequence: u64,
}

impl<'a> Client<'a> {
    async fn open(node: &'a MultiNode) -> anyhow::Result<Self> {
        let session = node.open_session(GROUP).await?.session();
        Ok(Self {
            node,
            session,
            sequence: 0,
        })
    }

    /// Asks until it is done, under one name.
    async fn ask(&mut self, text: &str) -> anyhow::Result<Outcome> {
        self.sequence += 1;
        let command = Command {
            request: RequestId {
                session: self.session,
                sequence: self.sequence,
            },
            acknowledged: self.sequence - 1,
            data: Bytes::from(text.to_owned()),
        };
        loop {
            match self.node.propose_as(GROUP, command.clone()).await {
                Ok(response) => return Ok(response.outcome),
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error).context("a command"),
            }
        }
    }

    async fn good(&mut self, text: &str) -> anyhow::Result<()> {
        reply(self.ask(text).await?).map(drop)
    }

    async fn poison(&mut self) -> anyhow::Result<()> {
        match self.ask(POISON).await? {
            Outcome::Fault(_) => Ok(()),
            other => anyhow::bail!("no poison: {other:?}"),
        }
    }
}
