//! `skep serve`: one node.

use std::path::{Path, PathBuf};

use anyhow::Context;
use skep::clock;
use skep_server::api::{client_port, front, server};
use skep_server::cluster::{Beginning, Host};
use skep_server::components::compiler;
use skep_server::config::{Config, ConfigError};
use skep_server::descriptors;
use skep_server::error::{HostError, listen};
use skep_server::join;
use skep_types::code::Code;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, Failure};
use super::private;
use super::reload::{reload, tell};
use crate::systemd;
use crate::telemetry::Telemetry;

/// Where the token to join with may be.
const TOKEN: &str = "SKEP_JOIN_TOKEN";
/// Pause between two looks at whether the node is ready, at start only.
const READY_POLL: Duration = Duration::from_millis(20);
/// How long requests in flight may take to finish when the node stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Prints one line on stdout when the node serves, and logs on stderr. SIGINT and SIGTERM stop it in order;
/// SIGHUP reads the configuration again and says in the log what is changed by that, and what counts after a restart only.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration; see skep.example.toml
    #[arg(long, value_name = "FILE", required_unless_present = "join")]
    config: Option<PathBuf>,
    /// Overrides [node] data_dir
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Joins the running cluster of the node with this client address, if the data directory is empty; overrides [cluster] join.
    /// The token of `skep node invite` is in SKEP_JOIN_TOKEN, or in a file
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Vec<String>,
    /// A file with the token; overrides [cluster] join_token_file
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Where other nodes reach this one; overrides [node] peer, which counts for a node that joins
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// Where clients reach it; overrides [node] client
    #[arg(long, value_name = "HOST:PORT")]
    client: Option<String>,
    /// Where it is reached over HTTP; overrides [node] http
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// What the node says of where it stands, as in zone=a; may be given several times; overrides [node] labels
    #[arg(long, value_name = "LABEL=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Overrides [listen] insecure_plaintext: allows addresses other than loopback without encryption
    #[arg(long)]
    insecure_plaintext: bool,
}

impl Arguments {
    /// Those of another verb about the same node.
    pub fn of(config: PathBuf, data_dir: Option<PathBuf>) -> Self {
        Self {
            config: Some(config),
            data_dir,
            join: Vec::new(),
            join_token_file: None,
            peer: None,
            client: None,
            http: None,
            label: Vec::new(),
            insecure_plaintext: false,
        }
    }

    /// The configuration, with the flags over it.
    pub fn load(&self) -> anyhow::Result<Config> {
        let variables = environment(self);
        let config = match &self.config {
            Some(path) => Config::load(path, variables),
            None => {
                let nothing = Path::new("the command line");
                Config::parse("[node]\n[cluster]\n", nothing, variables)
            }
        };
        let mut config = config.map_err(HostError::from)?;
        if let Some(dir) = &self.data_dir {
            config.node.data_dir =
                std::path::absolute(dir).context("cannot make --data-dir absolute")?;
        }
        join::recall(&mut config).map_err(Failure::from)?;
        Ok(config)
    }

    /// The token that a node joins with. It is on no command line, which everybody on the machine can read.
    fn token(config: &Config) -> anyhow::Result<String> {
        if let Ok(token) = std::env::var(TOKEN) {
            return Ok(token.trim().to_owned());
        }
        let Some(path) = &config.cluster.join_token_file else {
            let message = format!(
                "a node that joins needs a token: ask for one with `skep node invite`, and give it in {TOKEN} or in the file of \
                 --join-token-file"
            );
            let error = ConfigError::invalid("cluster.join_token_file", message);
            return Err(Failure::from(HostError::from(error)).into());
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the token in {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

pub async fn run(arguments: Arguments, telemetry: &Telemetry) -> anyhow::Result<()> {
    let descriptors = descriptors::raise().context("cannot see how many files may be open")?;
    let mut config = arguments.load()?;
    let lowered = descriptors::fit(&mut config, descriptors).map_err(Failure::from)?;
    telemetry
        .filter(config.log.filter.as_deref())
        .map_err(|error| ConfigError::invalid("log.filter", error))
        .map_err(HostError::from)?;
    // Before anything else: a node that is told to stop while it starts must not be killed by the default action.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let _harmless = harmless_signals()?;
    tell(&lowered, descriptors);
    private::mask();
    private::enforce(&config.node.data_dir);
    if !join::recall(&mut config).map_err(Failure::from)? {
        let token = Arguments::token(&config)?;
        let joined = tokio::select! {
            joined = join::join(&mut config, &token) => joined,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        joined.map_err(Failure::from)?;
    }

    // The ports come first: a taken one must be found before the store is touched.
    let failure = |error: HostError| anyhow::Error::new(Failure::from(error));
    let (clients, client_address) = listen("clients", config.listen_client())
        .await
        .map_err(failure)?;
    let (web, http_address) = listen("HTTP", config.listen_http())
        .await
        .map_err(failure)?;
    let mut running = config.clone();
    let compiler = compiler::of_this_program(config.compiling());
    let beginning = Beginning::open(config).await.map_err(failure)?;
    let told = systemd::tell_waiting(beginning.waiting());
    let founded = tokio::select! {
        founded = front::founded(beginning, &clients, &web) => founded.map_err(failure)?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
        never = told => match never {},
    };
    let host = Host::start_founded(founded, compiler)
        .await
        .map_err(failure)?;
    host.metrics().count_log_lines(telemetry.lines.clone());
    let stop = host.stopping();
    let clients = {
        let (host, stop) = (host.clone(), stop.clone());
        tokio::spawn(async move { client_port::serve(host, &clients, stop).await })
    };
    let web = {
        let (host, stop) = (host.clone(), stop.clone());
        tokio::spawn(async move { server::serve(host, &web, stop).await })
    };
    tokio::spawn(systemd::tell(host.clone(), stop));
    tracing::info!(client = %client_address, http = %http_address, peer = host.config().listen_peer(), "node started");
    let mut fatal = std::pin::pin!(host.failed());
    let mut ready = std::pin::pin!(announce(&host));
    let mut announced = false;
    let result = loop {
        tokio::select! {
            () = &mut ready, if !announced => announced = true,
            _ = hangup.recv() => reload(arguments.load(), &mut running, descriptors, &host, telemetry),
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            reason = &mut fatal => break Err(Failure::new(Code::NodeFailed, reason, Exit::Failed).into()),
        }
    };
    tracing::info!("node stops");
    host.stop().await;
    if clock::timeout(DRAIN_WITHIN, async { (clients.await, web.await) })
        .await
        .is_none()
    {
        tracing::warn!("connections were cut off");
    }
    result
}

/// Signals that would end a process that does not listen for them, and are none of a node's business: those of users, and of
/// a file that may not grow, which is an error of the write.
fn harmless_signals() -> anyhow::Result<Vec<Signal>> {
    [
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
        SignalKind::pipe(),
        SignalKind::alarm(),
        SignalKind::from_raw(libc::SIGXFSZ),
    ]
    .into_iter()
    .map(|kind| signal(kind).with_context(|| format!("cannot listen for signal {kind:?}")))
    .collect()
}

/// `LABEL=VALUE`.
fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=');
    let (label, value) = pair.ok_or_else(|| "write LABEL=VALUE, as in zone=a".to_owned())?;
    Ok((label.to_owned(), value.to_owned()))
}

/// The environment as the configuration sees it, with the flags over it.
fn environment(arguments: &Arguments) -> Vec<(String, String)> {
    let mut variables: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let listed = arguments.join.iter().map(|address| format!("{address:?}"));
    let join = format!("[{}]", listed.collect::<Vec<_>>().join(", "));
    let file = arguments.join_token_file.as_deref();
    let file = file.and_then(|file| std::path::absolute(file).ok());
    let data_dir = arguments
        .data_dir
        .as_deref()
        .filter(|_| arguments.config.is_none());
    let labels = arguments.label.iter();
    let labels = labels.map(|(label, value)| format!("{label:?} = {value:?}"));
    let labels = format!("{{{}}}", labels.collect::<Vec<_>>().join(", "));
    for (name, value) in [
        (
            "SKEP_NODE__LABELS",
            (!arguments.label.is_empty()).then_some(labels),
        ),
        (
            "SKEP_CLUSTER__JOIN",
            (!arguments.join.is_empty()).then_some(join),
        ),
        (
            "SKEP_CLUSTER__JOIN_TOKEN_FILE",
            file.map(|file| file.display().to_string()),
        ),
        (
            "SKEP_NODE__DATA_DIR",
            data_dir.map(|dir| dir.display().to_string()),
        ),
        ("SKEP_NODE__PEER", arguments.peer.clone()),
        ("SKEP_NODE__CLIENT", arguments.client.clone()),
        ("SKEP_NODE__HTTP", arguments.http.clone()),
    ] {
        variables.extend(value.map(|value| (name.to_owned(), value)));
    }
    if arguments.insecure_plaintext {
        variables.push((
            "SKEP_LISTEN__INSECURE_PLAINTEXT".to_owned(),
            "true".to_owned(),
        ));
    }
    variables
}

/// Prints one line once the node can serve everything it should. A thread writes it, for which nobody waits: who reads may hang,
/// and the node serves.
async fn announce(host: &Host) {
    while !host.waiting_for().is_empty() {
        clock::sleep(READY_POLL).await;
    }
    let own = host.config().own();
    let line = format!(
        "ready node={} client={} http={} peer={}\n",
        own.id, own.client, own.http, own.peer
    );
    tracing::info!("node is ready");
    let write = move || {
        if let Err(error) = super::output::raw(line.as_bytes()) {
            tracing::warn!(%error, "that the node is ready is not said on stdout");
        }
    };
    let thread = std::thread::Builder::new().name("skep-announce".into());
    if let Err(error) = thread.spawn(write) {
        tracing::warn!(%error, "that the node is ready is not said on stdout");
    }
}
