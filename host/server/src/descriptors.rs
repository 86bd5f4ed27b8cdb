//! How many files and sockets the process may have open, and who gets how many of them.

use std::io;

use skep::transport::INTRODUCTIONS;

use crate::catalog::NODES_MAX;
use crate::config::Config;
use crate::error::HostError;

/// With fewer a node does not start: its own work and 16 other nodes need most of them.
pub const FLOOR: usize = 512;
/// Kept for what the node itself opens (log, snapshots, components), at the least; otherwise a quarter of all.
const OWN: usize = 192;
/// For one other node: in each direction two lanes of batches, one connection for requests of clients, and one for a snapshot.
/// More snapshots on their way use the share that is counted for the node itself.
const EACH_PEER: usize = 8;
/// Nodes that there is room for, at the least: more may join.
const PEERS: usize = 16;

/// Raises the soft limit of the process to the hard one; how many there are then.
///
/// # Errors
/// If the system does not say.
pub fn raise() -> io::Result<usize> {
    let mut limit = limit()?;
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: `raised` is a value that outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// How many the process may have open now.
pub(crate) fn allowed() -> io::Result<usize> {
    Ok(usize::try_from(limit()?.rlim_cur).unwrap_or(usize::MAX))
}

fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call, which writes it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// Connections that so many other nodes need here.
fn of_peers(nodes: usize) -> usize {
    EACH_PEER * nodes.max(PEERS)
}

/// Connections that other nodes may have here, where the configuration names so many: where there are descriptors enough, as many
/// as the largest cluster needs.
pub(crate) fn room_for_peers(nodes: usize, descriptors: usize) -> usize {
    let share = (descriptors / 8).min(of_peers(NODES_MAX));
    of_peers(nodes).max(share)
}

/// Lowers the connections that a configuration gives to strangers, so that descriptors are left for the node's own work
/// and for its peers. Says in words what it lowered.
///
/// # Errors
/// [`HostError::TooFewDescriptors`] below [`FLOOR`], or what more nodes need beside it.
pub fn fit(config: &mut Config, descriptors: usize) -> Result<Vec<String>, HostError> {
    let nodes = config.cluster.nodes.len();
    let floor = FLOOR + of_peers(nodes) - of_peers(0);
    if descriptors < floor {
        return Err(HostError::TooFewDescriptors { descriptors, floor });
    }
    let peers = room_for_peers(nodes, descriptors);
    let kept = OWN.max(descriptors / 4) + peers + INTRODUCTIONS;
    let share = (descriptors.saturating_sub(kept) / 2).max(1);
    let mut lowered = Vec::new();
    for (key, most) in [
        (
            "limits.client_connections",
            &mut config.limits.client_connections,
        ),
        ("http.connections", &mut config.http.connections),
    ] {
        if *most > share {
            lowered.push(format!("{key} from {most} to {share}"));
            *most = share;
        }
    }
    Ok(lowered)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> Config {
        Config::parse(
            include_str!("../../skep.example.toml"),
            Path::new("skep.toml"),
            [],
        )
        .expect("the example")
    }

    #[test]
    fn strangers_leave_enough_for_the_node_and_its_peers() {
        for descriptors in [FLOOR, 1024, 4096, 1 << 20] {
            let mut config = config();
            fit(&mut config, descriptors).expect("enough");
            let strangers = config.http.connections + config.limits.client_connections;
            let peers = of_peers(3) + INTRODUCTIONS;
            assert!(
                strangers + peers + OWN <= descriptors,
                "{descriptors}: {strangers} for strangers"
            );
            assert!(config.http.connections >= 64, "{descriptors}: {strangers}");
        }
        let mut plenty = config();
        assert!(fit(&mut plenty, 1 << 20).expect("enough").is_empty());
        assert_eq!(plenty.http.connections, config().http.connections);
    }

    #[test]
    fn more_nodes_need_more() {
        let mut config = config();
        let node = config.cluster.nodes[0].clone();
        config.cluster.nodes.resize(64, node);
        let error = fit(&mut config.clone(), FLOOR).expect_err("too few");
        assert_eq!(error.code().name(), "too-few-descriptors");
        let enough = FLOOR + EACH_PEER * (64 - PEERS);
        fit(&mut config, enough).expect("enough");
        let strangers = config.http.connections + config.limits.client_connections;
        assert!(strangers >= 64, "{strangers} for strangers");
        assert!(strangers + of_peers(64) + INTRODUCTIONS + OWN <= enough);
    }

    #[test]
    fn too_few_are_refused_with_the_next_step() {
        let error = fit(&mut config(), 256).expect_err("too few");
        assert_eq!(error.code().name(), "too-few-descriptors");
        let text = error.to_string();
        assert!(text.contains("256") && text.contains("ulimit -n"), "{text}");
    }

    #[test]
    fn the_limit_of_this_process_is_known() {
        assert!(raise().expect("the system says") >= 64);
    }
}
