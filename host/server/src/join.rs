//! How a node joins a running cluster: it draws the id of its store, asks with that and a token for its own id, and notes the answer,
//! each durably before the next. So it may be killed at any step and gets the same id when it asks again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skep::clock;
use skep_client::{Client, ClientConfig, ClientError};
use skep_log::{DiskVfs, Identity, LogError, Store, StoreId, Vfs};
use skep_types::admin::{JoinCluster, Joined, method};
use skep_types::code::Code;
use skep_types::founding::{ClusterIdentity, Founding, Recovery};
use skep_vfs::replace;

use crate::config::{ClusterNode, Config, ConfigError};
use crate::error::HostError;

/// Where a node that joins keeps what it has drawn and heard.
const FILE: &str = "join";
/// The answer names each node of the cluster.
const FILE_BYTES: u64 = 1 << 20;
/// How long one attempt may take.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// The pause after an attempt that may succeed later, which doubles.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What a node that joins knows, in its file.
#[derive(Serialize, Deserialize)]
struct Noted {
    store: String,
    answer: Option<Joined>,
}

/// Takes from the data directory who the node of a configuration is that joins a cluster. `false` if it has not joined yet.
///
/// # Errors
/// The directory cannot be read, or belongs to another node or cluster than the configuration says.
pub fn recall(config: &mut Config) -> Result<bool, HostError> {
    if !config.joins() {
        return Ok(true);
    }
    let dir = &config.node.data_dir;
    let identity = match Identity::read(&DiskVfs, dir) {
        Ok(identity) => identity,
        Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(error) => return Err(skep::Error::Storage(error).into()),
    };
    // It may have been killed before it noted to which cluster it belongs.
    if identity.founding.is_none() {
        return Ok(false);
    }
    for (key, said, found) in [
        (
            "node.id",
            config.node.id.to_string(),
            identity.node.to_string(),
        ),
        (
            "cluster.id",
            config.cluster.id.clone(),
            identity.cluster.clone(),
        ),
    ] {
        if !said.is_empty() && said != "0" && said != found {
            let message = format!(
                "is {said}, and the data directory {} belongs to {found}; correct one of them, or leave the key out",
                dir.display()
            );
            return Err(ConfigError::invalid(key, message).into());
        }
    }
    let others = noted(dir)?.and_then(|noted| noted.answer);
    let others = others.map(|answer| others_of(&answer)).unwrap_or_default();
    config.settle(identity.node.into(), &identity.cluster, others);
    Ok(true)
}

/// Joins the cluster of a configuration, as often as it takes; afterwards the configuration says who the node is.
///
/// # Errors
/// The cluster refuses the node for good, or the data directory cannot be written.
pub async fn join(config: &mut Config, token: &str) -> Result<(), HostError> {
    if config.node.id != 0 {
        let message = "a node that joins gets its id from the cluster; leave the key out";
        return Err(ConfigError::invalid("node.id", message).into());
    }
    let dir = config.node.data_dir.clone();
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    vfs.create_dir_all(&dir).map_err(storage("create", &dir))?;
    let path = dir.join("lock");
    let lock = vfs.lock(&path).map_err(storage("lock", &path))?;
    let mut noted = match noted(&dir)? {
        Some(noted) => noted,
        None => {
            let mut store = [0; 16];
            getrandom::fill(&mut store).map_err(|error| HostError::Internal(error.to_string()))?;
            let store = StoreId(store).to_string();
            let noted = Noted {
                store,
                answer: None,
            };
            note(&vfs, &dir, &noted)?;
            noted
        }
    };
    let answer = match noted.answer.take() {
        Some(answer) => answer,
        None => {
            let answer = ask(config, token, &noted.store).await?;
            noted.answer = Some(answer.clone());
            note(&vfs, &dir, &noted)?;
            answer
        }
    };
    let store = StoreId::parse(&noted.store)
        .ok_or_else(|| HostError::Internal("the store of a node that joins has no id".into()))?;
    drop(lock);
    let (cluster, node) = (&answer.cluster, answer.node.0);
    let opened = Store::open_with(&vfs, &dir, cluster, node, || Ok(store));
    let mut opened = opened.map_err(skep::Error::Storage)?;
    let noted = opened.found(&vfs, &founding(&answer)?);
    noted.map_err(skep::Error::Storage)?;
    drop(opened);
    tracing::info!(node, cluster, "the node belongs to the cluster");
    config.settle(answer.node, cluster, others_of(&answer));
    Ok(())
}

/// Asks until there is an answer.
async fn ask(config: &Config, token: &str, store: &str) -> Result<Joined, HostError> {
    let own = config.own();
    let (named, cluster) = (&config.node.name, &config.cluster.id);
    let request = JoinCluster {
        token: token.to_owned(),
        store: store.to_owned(),
        name: named.clone(),
        cluster: (!cluster.is_empty()).then(|| cluster.clone()),
        peer: own.peer.clone(),
        client: own.client.clone(),
        http: own.http.clone(),
    };
    let mut attempt = 0;
    loop {
        let failed = match ask_once(&config.cluster.join, &request).await {
            Ok(joined) => return Ok(joined),
            Err(error) => error,
        };
        let said = failed.to_string();
        if !is_worth_another(&failed) {
            return Err(HostError::NotTakenIn {
                code: failed.code(),
                message: said,
            });
        }
        let at = config.cluster.join.join(", ");
        tracing::warn!(%at, error = %said, "no cluster takes this node in yet; it asks again");
        clock::sleep(clock::doubled(PAUSE, attempt)).await;
        attempt += 1;
    }
}

async fn ask_once(at: &[String], request: &JoinCluster) -> Result<Joined, ClientError> {
    let mut config = ClientConfig::new(at.iter().cloned());
    config.request_timeout = ASK_WITHIN;
    let client = Client::connect(config).await?;
    let strange = |error: serde_json::Error| ClientError::BadAnswer(error.to_string());
    let body = serde_json::to_value(request).map_err(strange)?;
    let answer = client.call(method::NODE_JOIN, &body).await?;
    serde_json::from_value(answer).map_err(strange)
}

/// Whether the same question may be answered otherwise later. To repeat it is safe.
fn is_worth_another(error: &ClientError) -> bool {
    error.is_retryable() || error.is_unknown() || matches!(error.code(), Code::ConnectionFailed)
}

/// How the cluster was founded.
fn founding(answer: &Joined) -> Result<Founding, HostError> {
    let founders = answer.founders.iter();
    let founders = founders.map(|(node, store)| Some((*node, StoreId::parse(store)?.0)));
    let founders: Option<BTreeMap<_, _>> = founders.collect();
    let strange = || {
        HostError::NotTakenIn {
        code: Code::BadAnswer,
        message: "the answer names a founder without a store, or a life of the cluster without an identity; run the same release on both ends"
            .to_owned(),
    }
    };
    let former = answer.former.iter().map(|of| ClusterIdentity::parse(of));
    let former = former.collect::<Option<Vec<_>>>().ok_or_else(strange)?;
    let plan = answer.plan.as_deref().map(|plan| {
        let plan = ClusterIdentity::parse(plan).ok_or_else(strange)?.0;
        Ok::<_, HostError>(Recovery { plan, former })
    });
    Ok(Founding {
        cluster: answer.cluster.clone(),
        incarnation: answer.incarnation,
        founders: founders.ok_or_else(strange)?,
        recovery: plan.transpose()?,
    })
}

fn others_of(answer: &Joined) -> Vec<ClusterNode> {
    let others = answer.nodes.iter().filter(|node| node.id != answer.node);
    let hint = |node: &skep_types::record::NodeRecord| ClusterNode {
        id: node.id.0,
        peer: node.peer.clone(),
        client: node.client.clone(),
        http: node.http.clone(),
    };
    others.map(hint).collect()
}

fn noted(dir: &Path) -> Result<Option<Noted>, HostError> {
    let path = dir.join(FILE);
    let content = match DiskVfs.read(&path, FILE_BYTES) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(storage("read", &path)(error)),
    };
    let noted = serde_json::from_slice(&content).map_err(|error| {
        let reason = error.to_string();
        skep::Error::Storage(LogError::BadIdentity { file: path, reason })
    })?;
    Ok(Some(noted))
}

fn note(vfs: &Arc<dyn Vfs>, dir: &Path, noted: &Noted) -> Result<(), HostError> {
    let content =
        serde_json::to_vec(noted).map_err(|error| HostError::Internal(error.to_string()))?;
    let path = dir.join(FILE);
    let written = replace(vfs, &path, 0, &[&content]);
    written.map_err(|error| storage("write", &path)(error.into()))
}

fn storage(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path: PathBuf = path.to_owned();
    move |error| {
        let failed = match error.kind() {
            io::ErrorKind::WouldBlock => LogError::Locked { path },
            _ => LogError::Io {
                action,
                path,
                source: error,
            },
        };
        skep::Error::Storage(failed).into()
    }
}

#[cfg(test)]
mod tests {
    use skep_types::admin::InviteNode;
    use tokio::net::TcpListener;

    use super::*;
    use crate::api::client_port;
    use crate::cluster::Host;

    fn config(text: &str, dir: &Path) -> Config {
        let mut config = Config::parse(text, Path::new("skep.toml"), []).expect("a configuration");
        config.node.data_dir = dir.to_owned();
        config
    }

    /// A node that is a cluster, and where its clients reach it.
    async fn cluster(dir: &Path) -> (Host, String) {
        let text = r#"
            node = { id = 1, data_dir = "x" }
            cluster = { id = "hive", nodes = [{ id = 1, peer = "127.0.0.1:1", client = "127.0.0.1:2", http = "127.0.0.1:3" }] }
            raft = { tick_ms = 5 }"#;
        let mut config = config(text, dir);
        config.listen.peer = Some("127.0.0.1:0".to_owned());
        let host = Host::start(config).await.expect("it starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let (front, stop) = (host.clone(), host.stopping());
        tokio::spawn(async move { client_port::serve(front, &listener, stop).await });
        while !host.waiting_for().is_empty() {
            clock::sleep(Duration::from_millis(5)).await;
        }
        (host, address)
    }

    fn newcomer(by: &str, dir: &Path) -> Config {
        let text = format!(
            r#"
            node = {{ data_dir = "x", peer = "127.0.0.1:4", client = "127.0.0.1:5", http = "127.0.0.1:6" }}
            cluster = {{ join = ["{by}"] }}"#
        );
        config(&text, dir)
    }

    /// Each step is durable before the next; what is deleted here had not happened when the node was killed.
    // P-80
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_is_killed_while_it_joins_gets_the_same_id() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, by) = cluster(&dir.path().join("one")).await;
        let token = host.invite_node(InviteNode::default()).await;
        let token = token.expect("an invitation").token;
        let home = dir.path().join("two");
        let mut first = newcomer(&by, &home);
        assert!(!recall(&mut first).expect("an empty directory"));
        join(&mut first, &token).await.expect("it joins");
        assert_eq!((first.node.id, first.cluster.id.as_str()), (2, "hive"));
        assert_eq!(first.cluster.nodes.len(), 2);
        let identity = Identity::read(&DiskVfs, &home).expect("an identity");

        let forgets_the_answer = |home: &Path| {
            let mut noted = noted(home).expect("readable").expect("noted");
            noted.answer = None;
            let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
            note(&vfs, home, &noted).expect("written");
        };
        for forgets in [true, false] {
            std::fs::remove_file(home.join("identity")).expect("it is there");
            if forgets {
                forgets_the_answer(&home);
            }
            let mut again = newcomer(&by, &home);
            assert!(!recall(&mut again).expect("it did not join"));
            join(&mut again, &token).await.expect("it joins");
            assert_eq!(again, first);
            assert_eq!(
                Identity::read(&DiskVfs, &home).expect("an identity"),
                identity
            );
        }
        // Whoever has joined asks nobody.
        let mut later = newcomer("127.0.0.1:1", &home);
        assert!(recall(&mut later).expect("it joined"));
        assert_eq!(
            (later.node.id, &later.cluster.nodes),
            (2, &first.cluster.nodes)
        );

        let other = dir.path().join("three");
        let refused = join(&mut newcomer(&by, &other), &token).await;
        let refused = refused.expect_err("the token is used");
        assert_eq!(refused.code(), Code::InvitationUsed, "{refused}");
        let unknown = join(&mut newcomer(&by, &other), "guessed").await;
        let unknown = unknown.expect_err("nobody gave this token");
        assert_eq!(unknown.code(), Code::NotInvited, "{unknown}");
        assert_eq!(host.catalog().nodes().len(), 2);
        host.stop().await;
    }

    #[test]
    fn a_data_directory_and_a_configuration_that_differ_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
        let mut store = Store::open(&vfs, dir.path(), "hive", 7).expect("a store");
        let founding = Founding::new("hive", [(1.into(), [1; 16])].into());
        let mut unfounded = newcomer("a:1", dir.path());
        assert!(!recall(&mut unfounded).expect("it was killed on the way"));
        store.found(&vfs, &founding).expect("noted");
        let mut fits = newcomer("a:1", dir.path());
        assert!(recall(&mut fits).expect("it fits"));
        assert_eq!(fits.node.id, 7);
        let mut other = newcomer("a:1", dir.path());
        other.cluster.id = "wasps".to_owned();
        let error = recall(&mut other).expect_err("another cluster");
        assert!(error.to_string().contains("hive"), "{error}");
    }
}
