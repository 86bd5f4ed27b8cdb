//! SIGHUP: the configuration is read again; what can change while the node runs is changed, and all is said.

use skep_server::cluster::Host;
use skep_server::config::Config;
use skep_server::descriptors::fit;

use crate::telemetry::Telemetry;

/// Takes from a configuration that was read again what can be changed. `running` is what is in effect.
pub fn reload(
    loaded: anyhow::Result<Config>,
    running: &mut Config,
    descriptors: usize,
    host: &Host,
    telemetry: &Telemetry,
) {
    let loaded = loaded.and_then(|mut config| {
        let lowered = fit(&mut config, descriptors)?;
        Ok((config, lowered))
    });
    let (mut asked, lowered) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!(%error, "the configuration was not read again; nothing is changed");
            return;
        }
    };
    tell(&lowered, descriptors);
    let filtered = telemetry.filter(asked.log.filter.as_deref());
    if let Err(error) = &filtered {
        tracing::error!(error, "log.filter is not changed");
        asked.log.clone_from(&running.log);
    }
    let differences = running.differences(&asked);
    host.reload(&asked);
    running.take_reloadable(&asked);
    let waiting = running.differences(&asked);
    let (changed, mut restart): (Vec<String>, Vec<String>) = differences
        .into_iter()
        .partition(|key| !waiting.contains(key));
    if changed.iter().any(|key| key == "log.filter") && matches!(filtered, Ok(false)) {
        tracing::warn!("log.filter has no effect: SKEP_LOG is set, and beats it");
    }
    tracing::info!(
        changed = changed.join(", "),
        "the configuration was read again"
    );
    if !restart.is_empty() {
        restart.sort();
        tracing::warn!(
            keys = restart.join(", "),
            "these keys have changed and count after a restart of this node"
        );
    }
}

/// Says what [`descriptors::fit`] has lowered.
pub fn tell(lowered: &[String], descriptors: usize) {
    for lowered in lowered {
        tracing::warn!(
            descriptors,
            "this process may open too few files for all connections: lowered {lowered}; raise `ulimit -n`"
        );
    }
}
