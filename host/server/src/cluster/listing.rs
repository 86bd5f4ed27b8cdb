//! What is said of groups.

use std::sync::Arc;

use skep::trouble::{Kind, Trouble};
use skep_types::admin::{GroupInfo, LIST_MAX, Page, method};

use super::{Host, Hosted, Reach};
use crate::catalog::{Catalog, GroupRecord};
use crate::error::HostError;

impl Host {
    /// What is known here of a group.
    pub async fn group_info(&self, record: &GroupRecord) -> GroupInfo {
        let mut info = record.info();
        if self.inner.node.exists(record.id) {
            match self.inner.node.status(record.id).await {
                Ok(status) => {
                    info.leader = status.replica.leader;
                    info.term = Some(status.replica.term);
                    info.memory = status.memory;
                    let trouble = status.trouble;
                    let trouble = trouble.map(|trouble| self.judged(record.id, trouble));
                    info.problem = trouble.map(|trouble| trouble.to_string());
                }
                Err(error) => info.problem = Some(error.to_string()),
            }
        } else if record.members.contains(&self.id()) {
            info.problem = Some(match self.hosted().get(&record.id) {
                Some(Hosted::Starting {
                    reason: Some(reason),
                    ..
                }) => Trouble::new(Kind::Starting, reason.clone()).to_string(),
                _ => "starting".to_owned(),
            });
        }
        info
    }

    /// Groups, as the catalogue has them after it was refreshed.
    pub async fn groups(&self, page: Page, reach: Reach) -> Result<Vec<GroupInfo>, HostError> {
        let here = || async {
            self.refresh().await?;
            Ok(self.group_infos(&self.catalog(), page).await)
        };
        match page.under_replicated {
            // Nobody else knows who answers.
            true => {
                self.at_the_leader(method::GROUP_LIST, &page, reach, here)
                    .await
            }
            false => here().await,
        }
    }

    pub(super) async fn group_infos(&self, catalog: &Catalog, page: Page) -> Vec<GroupInfo> {
        let limit = page.limit.unwrap_or(LIST_MAX).min(LIST_MAX);
        let mut groups = Vec::new();
        let lacking = page
            .under_replicated
            .then(|| self.under_replicated().unwrap_or_default());
        let is_meant = |record: &&Arc<GroupRecord>| {
            lacking
                .as_ref()
                .is_none_or(|lacking| lacking.contains(&record.id))
        };
        let records = catalog.groups_after(page.after).filter(is_meant);
        for record in records.take(limit) {
            groups.push(self.group_info(record).await);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use skep_core::id::{ComponentId, GroupId, LogIndex, NodeId};
    use skep_log::StoreId;

    use super::*;
    use crate::catalog::command::{Command, NewGroup};
    use crate::catalog::{At, ComponentRecord, NodeRecord};
    use crate::config::Config;

    /// A catalogue with so many groups, all of them on another node.
    fn catalog_of(groups: usize) -> Catalog {
        let (other, component) = (NodeId(2), ComponentId::of(b"machine"));
        let node = NodeRecord {
            id: other,
            name: "other".to_owned(),
            store: StoreId([2; 16]).to_string(),
            ..NodeRecord::default()
        };
        let uploaded = ComponentRecord {
            id: component,
            size: 7,
            name: "machine".to_owned(),
            uploaded: 0,
        };
        let group = |number| NewGroup {
            id: None,
            name: format!("group-{number}"),
            component,
            members: [other].into(),
            init: Vec::new(),
            profile: Default::default(),
            quota: Default::default(),
            barriers: Default::default(),
        };
        let mut catalog = Catalog::default();
        let first = [Command::PutNode(node), Command::PutComponent(uploaded)];
        let all = (0..groups).map(|number| Command::CreateGroup(group(number)));
        for (command, index) in first.into_iter().chain(all).zip(1..) {
            let index = LogIndex(index);
            catalog.apply(At { index, now: 0 }, command).expect("taken");
        }
        catalog
    }

    /// M9: a list of groups was as long as there were groups.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_list_of_groups_has_a_bound_whatever_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let text = include_str!("../../../skep.example.toml");
        let mut config = Config::parse(text, Path::new("skep.toml"), []).unwrap();
        config.node.data_dir = dir.path().join("data");
        config.listen.peer = Some("127.0.0.1:0".to_owned());
        // Alone, so that it waits for no other founder.
        config
            .cluster
            .nodes
            .retain(|node| node.id == config.node.id);
        let host = Host::start(config).await.unwrap();
        let catalog = catalog_of(LIST_MAX + 7);
        let listed = async |after, limit| {
            let page = Page {
                after,
                limit,
                ..Page::default()
            };
            host.group_infos(&catalog, page).await.len()
        };
        for limit in [None, Some(LIST_MAX), Some(usize::MAX)] {
            assert_eq!(listed(None, limit).await, LIST_MAX, "{limit:?}");
        }
        let first = GroupId(LIST_MAX as u64);
        assert_eq!(listed(Some(first), None).await, 7);
        assert_eq!(listed(None, Some(3)).await, 3);
        host.stop().await;
    }
}
