//! What tests ask of a cluster: over HTTP and as its clients.

use serde_json::{Value, json};
use skep::GroupStatus;
use skep_client::{Client, ClientConfig, ComponentId, Consistency, GroupId, LogIndex, Outcome};
use skep_types::admin::GroupInfo;

use super::Cluster;
use crate::clock::{PATIENCE, eventually};
use crate::http::{self, Answer};

impl Cluster {
    /// A client that knows every node.
    pub async fn client(&self) -> Client {
        self.client_at(&self.ids()).await
    }

    /// A client that knows only some nodes, and asks them in this order.
    pub async fn client_at(&self, ids: &[u64]) -> Client {
        let mut config = ClientConfig::new(ids.iter().map(|id| self.node(*id).client.clone()));
        config.request_timeout = PATIENCE;
        Client::connect(config)
            .await
            .unwrap_or_else(|error| panic!("a client of nodes {ids:?}: {error}"))
    }

    /// One HTTP request at a node.
    pub async fn http(&self, id: u64, method: &str, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.http_with(id, method, path, &[], body).await
    }

    /// One HTTP request with headers at a node.
    pub async fn http_with(
        &self,
        id: u64,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let answer = http::request(&self.node(id).http, method, path, headers, body.as_ref()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path} at node {id}: {error}"))
    }

    /// A token for one node that joins, from this one.
    pub async fn invited(&self, by: u64) -> String {
        let answer = self.http(by, "POST", "/v1/nodes/invite", "{}").await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let token = answer.json()["token"].as_str().map(str::to_owned);
        token.expect("a token")
    }

    /// Offers a component to a node, which may refuse it.
    pub async fn put_component(&self, id: u64, component: &[u8]) -> Answer {
        let path = format!("/v1/components/{}", ComponentId::of(component));
        self.http(id, "PUT", &path, component).await
    }

    /// Uploads a component at a node.
    pub async fn upload(&self, id: u64, component: &[u8]) -> ComponentId {
        let answer = self.put_component(id, component).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        ComponentId::of(component)
    }

    /// Creates a group of the built-in machine on these nodes; its id.
    pub async fn create_kv(&self, at: u64, name: &str, members: &[u64]) -> GroupId {
        self.create(at, json!({"name": name, "members": members}))
            .await
    }

    /// Creates a group of a component on these nodes; its id.
    pub async fn create_from(
        &self,
        at: u64,
        name: &str,
        component: &[u8],
        members: &[u64],
    ) -> GroupId {
        let component = self.upload(at, component).await.to_string();
        self.create(
            at,
            json!({"name": name, "component": component, "members": members}),
        )
        .await
    }

    /// Creates a group as this request asks for; its id.
    pub async fn create(&self, at: u64, request: Value) -> GroupId {
        let answer = self
            .http(at, "POST", "/v1/groups", request.to_string())
            .await;
        assert_eq!(answer.status, 201, "{request}: {}", answer.text());
        let info: GroupInfo = serde_json::from_value(answer.json()).expect("a group");
        assert_eq!(info.problem, None, "{request}");
        info.id
    }

    /// What a node says of its replica of a group, or why it says nothing.
    ///
    /// # Errors
    /// The problem, in words.
    pub async fn try_status(&self, id: u64, group: GroupId) -> Result<GroupStatus, String> {
        let path = format!("/v1/groups/{group}/status");
        let answer = http::request(&self.node(id).http, "GET", &path, &[], b"").await;
        let answer = answer.map_err(|error| format!("node {id}: {error}"))?;
        if answer.status != 200 {
            return Err(format!("node {id}: {}", answer.text()));
        }
        let status: GroupStatus =
            serde_json::from_value(answer.json()).map_err(|error| error.to_string())?;
        match status.replica.node.0 {
            node if node == id => Ok(status),
            node => Err(format!(
                "node {id} has no replica of group {group}; node {node} answered"
            )),
        }
    }

    /// The leader of a group, as those of the given nodes agree who host it.
    pub async fn leader_among(&self, group: GroupId, nodes: &[u64]) -> u64 {
        eventually(
            &format!("nodes {nodes:?} agree on a leader of group {group} among them"),
            async || {
                let mut seen = Vec::new();
                for id in nodes {
                    let status = self.try_status(*id, group).await?;
                    seen.push((status.replica.term, status.replica.leader));
                }
                match seen.as_slice() {
                    [(_, Some(leader)), rest @ ..]
                        if nodes.contains(&leader.0)
                            && rest.iter().all(|other| other == &seen[0]) =>
                    {
                        Ok(leader.0)
                    }
                    _ => Err(format!("{seen:?}")),
                }
            },
        )
        .await
    }

    /// The leader of a group that all nodes host.
    pub async fn leader(&self, group: GroupId) -> u64 {
        self.leader_among(group, &self.ids()).await
    }

    /// Waits until the replicas on these nodes have applied everything that any of them has committed. Only for a group that
    /// nobody writes to: of one under load no two answers agree.
    pub async fn caught_up(&self, group: GroupId, nodes: &[u64]) {
        eventually(
            &format!("group {group} is the same on nodes {nodes:?}"),
            async || {
                let seen = self.progress(group, nodes).await?;
                let most = seen.iter().map(|(commit, _)| *commit).max();
                match seen.iter().all(|(_, applied)| Some(*applied) == most) {
                    true => Ok(()),
                    false => Err(format!("(commit, applied): {seen:?}")),
                }
            },
        )
        .await;
    }

    /// Waits until the replicas on these nodes have applied what was committed when this was asked, under load too.
    pub async fn keeps_up(&self, group: GroupId, nodes: &[u64]) {
        let what = format!("group {group} goes on on nodes {nodes:?}");
        let start = eventually(&what, async || {
            let seen = self.progress(group, nodes).await?;
            let most = seen.iter().map(|(commit, _)| *commit).max();
            most.ok_or_else(|| "no nodes".to_owned())
        })
        .await;
        eventually(&what, async || {
            let seen = self.progress(group, nodes).await?;
            match seen.iter().all(|(_, applied)| *applied >= start) {
                true => Ok(()),
                false => Err(format!("from {start:?} on, (commit, applied): {seen:?}")),
            }
        })
        .await;
    }

    /// The commit and applied index of the replicas on these nodes.
    async fn progress(
        &self,
        group: GroupId,
        nodes: &[u64],
    ) -> Result<Vec<(LogIndex, LogIndex)>, String> {
        let mut seen = Vec::new();
        for id in nodes {
            let replica = self.try_status(*id, group).await?.replica;
            seen.push((replica.commit, replica.applied));
        }
        Ok(seen)
    }

    /// What the machine of one node's own replica answers.
    pub async fn replica_answer(&self, id: u64, group: GroupId, query: &str) -> Outcome {
        let path = format!("/v1/groups/{group}/query?consistency=stale");
        // Only a node that hosts the group may answer here.
        let status = self.try_status(id, group).await;
        assert!(status.is_ok(), "{status:?}");
        let client = self.client_at(&[id]).await;
        let answer = client
            .query(group, query.to_owned().into(), Consistency::Stale)
            .await;
        answer
            .unwrap_or_else(|error| panic!("{path} at node {id}: {error}"))
            .outcome
    }

    /// A counter of a node's `/metrics`.
    pub async fn metric(&self, id: u64, name: &str) -> u64 {
        let text = self.http(id, "GET", "/metrics", "").await.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.and_then(|value| value.trim().parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in:\n{text}")) as u64
    }
}
