//! `skep recover`: a cluster that has lost majorities for good goes on with what its survivors have.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use skep_core::id::NodeId;
use skep_core::printable::printable_lines;
use skep_log::{DiskVfs, Identity, LogError, Vfs, vfs};
use skep_store::recovery::{Carried, RecoveryError, carry_out};
use skep_types::code::Code;

use super::failure::{Exit, Failure};
use super::{output, private};
use crate::recover::{Description, Plan, Refusal, Wish, alive};
use crate::replay::ReplayError;

/// Goes on with what is left after the majority of the catalogue, or of groups, is lost for good
///
/// The last resort: what only the lost nodes had is gone. Use it only if they do not come back; if any of them may, or its
/// disk can be put into another machine, wait for that. While every group has a majority left, `skep node remove` is the way,
/// and loses nothing.
///
/// 1. Switch the lost machines off for good, or make sure that nobody reaches them. Stop the nodes that are left, and keep a
///    copy of their directories if there is room.
/// 2. On each of these, as the node's user: `skep recover describe --data-dir DIR > N.json`.
/// 3. On one machine: `skep recover plan --description 1.json --description 2.json --lost 3,4,5 --out plan.json`. It prints for
///    each group from which replica it starts and what may be lost. Nothing is changed yet. (Directories that are on one
///    machine may be named with --data-dir instead.)
/// 4. On each node that is left: `skep recover apply --plan plan.json --data-dir DIR`. It may be killed and run again.
/// 5. Start these nodes as always. The cluster has another identity: lost nodes that come back are refused, and told.
/// 6. Have new nodes join (`skep node invite`), and give the groups replicas on them (`skep member add`).
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Prints what the data directory of a stopped node has, as JSON for `skep recover plan`; changes nothing
    Describe {
        /// Data directory of a stopped node
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Decides from where each group starts, and prints that and what may be lost; changes nothing
    Plan {
        /// What `skep recover describe` printed of a node that is left; once for each
        #[arg(long, value_name = "FILE")]
        description: Vec<PathBuf>,
        /// Data directory of a node that is left, if it is on this machine; once for each
        #[arg(long, value_name = "DIR")]
        data_dir: Vec<PathBuf>,
        /// The nodes that are lost for good: all of the cluster whose directories are not named
        #[arg(long, value_name = "NODE,…", value_delimiter = ',', required = true)]
        lost: Vec<u64>,
        /// Gives up the groups of which no usable replica is left; they are named, and their data is gone
        #[arg(long)]
        give_up_groups: bool,
        /// Writes the plan to this file, for `skep recover apply`
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Carries a plan out in a data directory; goes on where it stopped if it is run again
    Apply {
        /// What `skep recover plan` wrote
        #[arg(long, value_name = "FILE")]
        plan: PathBuf,
        /// Data directory of a node that is left; once for each that is on this machine
        #[arg(long, value_name = "DIR", required = true)]
        data_dir: Vec<PathBuf>,
    },
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Describe { data_dir } => {
            let described = describe(data_dir).await?;
            let text = serde_json::to_string_pretty(&described).context("cannot write JSON")?;
            output::raw(format!("{text}\n").as_bytes())
        }
        Verb::Plan {
            description,
            data_dir,
            lost,
            give_up_groups,
            out,
        } => {
            let lost = lost.into_iter().map(NodeId).collect();
            let wish = Wish {
                lost,
                give_up_groups,
            };
            plan(description, data_dir, &wish, out).await
        }
        Verb::Apply { plan, data_dir } => apply(&plan, data_dir).await,
    }
}

async fn describe(dir: PathBuf) -> anyhow::Result<Description> {
    let described = blocking(move || Description::of(&dir)).await?;
    described.map_err(|error| match error.downcast::<ReplayError>() {
        Ok(ReplayError::Log(error)) => of_log(&error).into(),
        Ok(error) => error.into(),
        Err(error) => match error.downcast::<Refusal>() {
            Ok(refusal) => refused(refusal).into(),
            Err(error) => error,
        },
    })
}

async fn plan(
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    wish: &Wish,
    out: Option<PathBuf>,
) -> anyhow::Result<()> {
    let mut descriptions = Vec::new();
    for file in files {
        let read = Description::read(&content(&file)?).map_err(refused);
        descriptions.push(read.with_context(|| format!("cannot use {}", file.display()))?);
    }
    for dir in dirs {
        descriptions.push(describe(dir).await?);
    }
    let plan = Plan::make(&descriptions, wish).map_err(refused)?;
    nobody_answers(&plan).await?;
    let mut text = plan.text();
    match out {
        Some(out) => {
            let content = plan.write().map_err(refused)?;
            let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
            vfs::replace(&vfs, &out, 0, &[&content]).map_err(|error| of_log(&error.into()))?;
            text += &format!(
                "nothing was changed; `skep recover apply --plan {} --data-dir DIR` on each of these nodes does it\n",
                out.display()
            );
        }
        None => text += "nothing was changed, and no plan was written (--out FILE)\n",
    }
    output::raw(printable_lines(&text).as_bytes())
}

async fn apply(file: &Path, dirs: Vec<PathBuf>) -> anyhow::Result<()> {
    let plan = Plan::read(&content(file)?).map_err(refused);
    let plan = plan.with_context(|| format!("cannot use {}", file.display()))?;
    nobody_answers(&plan).await?;
    private::mask();
    // All of them before the first is touched.
    let mut ordered = Vec::new();
    for dir in dirs {
        let Identity { node, store, .. } =
            Identity::read(&DiskVfs, &dir).map_err(|error| of_log(&error))?;
        let owner = std::fs::metadata(&dir)
            .with_context(|| format!("cannot look at {}", dir.display()))?
            .uid();
        if !private::is_own(owner) {
            return Err(refused(Refusal::NotOwner(dir, owner)).into());
        }
        ordered.push((plan.orders(NodeId(node), store).map_err(refused)?, dir));
    }
    for (orders, dir) in ordered {
        let place = dir.clone();
        let carried = blocking(move || {
            let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
            carry_out(&vfs, &dir, &orders)
        });
        let text = match carried.await?.map_err(not_carried_out)? {
            Carried::Out => "the plan is carried out; start the node as always",
            Carried::OutBefore => "the plan was carried out before; nothing was changed",
        };
        output::raw(format!("{}: {text}\n", place.display()).as_bytes())?;
    }
    Ok(())
}

async fn nobody_answers(plan: &Plan) -> Result<(), Failure> {
    let alive = alive(plan).await;
    match alive.is_empty() {
        true => Ok(()),
        false => Err(refused(Refusal::Alive(alive.join(", ")))),
    }
}

fn content(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.context("the work was not ended")
}

fn refused(refusal: Refusal) -> Failure {
    Failure::new(Code::RecoveryRefused, refusal.to_string(), Exit::Failed)
}

fn of_log(error: &LogError) -> Failure {
    Failure::new(error.code(), error.to_string(), Exit::Failed)
}

fn not_carried_out(error: RecoveryError) -> Failure {
    match error {
        RecoveryError::Log(error) => of_log(&error),
        error => Failure::new(Code::RecoveryRefused, error.to_string(), Exit::Failed),
    }
}
