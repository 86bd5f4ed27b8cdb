//! What is wrong with the machine that a node runs on, or is to run on.

use std::io;
use std::path::Path;
use std::sync::Arc;

use skep::{DiskRoom, DiskVfs, Vfs};
use skep_log::{Identity, LogError};
use skep_server::config::Config;
use skep_server::descriptors;

use super::Finding;

/// What can be seen without the node, which may run or not.
pub(super) fn examine(path: &Path) -> Vec<Finding> {
    let config = match Config::load(path, std::env::vars()) {
        Ok(config) => config,
        Err(error) => {
            let text = skep_server::error::HostError::from(error).chain();
            return vec![Finding::problem(path.display(), text, "before-you-begin")];
        }
    };
    let mut findings = Vec::new();
    match descriptors::raise() {
        Ok(allowed) if allowed < descriptors::FLOOR => findings.push(Finding::problem(
            "this machine",
            format!(
                "a process may open {allowed} files, and a node needs {}",
                descriptors::FLOOR
            ),
            "before-you-begin",
        )),
        Ok(_) => {}
        Err(error) => findings.push(Finding::warning(
            "this machine",
            format!("it does not say how many files a process may open: {error}"),
            "before-you-begin",
        )),
    }
    let dir = &config.node.data_dir;
    if dir.exists() {
        findings.extend(directory(dir, &config));
    }
    findings
}

fn directory(dir: &Path, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of = dir.display();
    match Identity::read(&DiskVfs, dir) {
        Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            findings.push(Finding::problem(of, error.to_string(), "the-disk-is-lost"));
        }
        Ok(identity) => {
            let (node, cluster) = (config.node.id, &config.cluster.id);
            if node != 0 && node != identity.node {
                let text = format!(
                    "it is the directory of node {}, and the configuration says {node}",
                    identity.node
                );
                findings.push(Finding::problem(of, text, "an-old-or-a-copied-disk"));
            }
            if !cluster.is_empty() && *cluster != identity.cluster {
                let text = format!(
                    "it belongs to the cluster {}, and the configuration says {cluster}",
                    identity.cluster
                );
                let of = dir.display();
                findings.push(Finding::problem(of, text, "an-old-or-a-copied-disk"));
            }
        }
    }
    let full =
        DiskRoom::open(dir, config.limits.disk_reserve_bytes).map(|room| room.check(0).err());
    match full {
        Ok(None) => {}
        Ok(Some(full)) => {
            let of = dir.display();
            findings.push(Finding::problem(of, full.to_string(), "the-disk-is-full"));
        }
        Err(error) => {
            let text = format!("nobody knows how full its disk is: {error}");
            findings.push(Finding::warning(dir.display(), text, "the-disk-is-full"));
        }
    }
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    let runs = matches!(vfs.lock(&dir.join("lock")), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    if !runs {
        findings.push(Finding::warning(
            dir.display(),
            "no node runs on it",
            "a-node-is-down",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::doctor::tests::assert_page;

    fn examined(dir: &Path, config: &str) -> Vec<(String, String)> {
        let path = dir.join("skep.toml");
        std::fs::write(&path, config).expect("a configuration");
        let findings = examine(&path);
        findings.iter().for_each(assert_page);
        let words = findings
            .into_iter()
            .map(|finding| (finding.text, finding.page.to_owned()));
        words.collect()
    }

    #[test]
    fn a_machine_is_looked_at_by_its_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let example = include_str!("../../../../skep.example.toml");
        assert_eq!(examined(dir.path(), example), [], "nothing is there yet");
        let wrong = examined(dir.path(), "[node]\nidd = 1\n");
        assert!(wrong[0].0.contains("idd"), "{wrong:?}");

        let data = dir.path().join("data");
        let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
        let store = skep_log::Store::open(&vfs, &data, "example", 7).expect("a store");
        let found = examined(dir.path(), example);
        let node = &found[0];
        assert!(
            node.0.contains("node 7") && node.1 == "an-old-or-a-copied-disk",
            "{found:?}"
        );
        assert!(found.iter().all(|(text, _)| text != "no node runs on it"));
        drop(store);
        let found = examined(dir.path(), example);
        assert!(
            found.iter().any(|(text, _)| text == "no node runs on it"),
            "{found:?}"
        );
        std::fs::write(data.join("identity"), "nonsense").expect("a file");
        let found = examined(dir.path(), example);
        assert_eq!(found[0].1, "the-disk-is-lost", "{found:?}");
    }
}
