//! A cluster that has lost majorities for good: what its survivors have, what is to be done, and doing it.
//!
//! A [`Description`] is what one directory has; it travels, so survivors may be on different machines. A [`Plan`] follows from
//! the descriptions and from nothing else. What it says is carried out in each directory by
//! [`skep_store::recovery`].

mod description;
mod plan;
mod refusal;

use std::time::Duration;

use futures::future::join_all;
use skep::clock;
use skep::transport::{FoundingConfig, is_alive};

pub use description::Description;
pub use plan::{Plan, Wish};
pub use refusal::Refusal;

/// How long a lost node is given to answer.
const ASK_WITHIN: Duration = Duration::from_secs(12);

/// Those of the lost nodes of a plan that answer where the catalogue says that they are.
pub async fn alive(plan: &Plan) -> Vec<String> {
    let config = FoundingConfig {
        cluster: plan.cluster.clone(),
        node: plan.asker().0,
        store: plan.asker().1,
        peers: Vec::new(),
        // The question is of those that a node asks at its start, and tells nothing that the others do not know.
        insecure_plaintext: true,
    };
    let asked = plan.lost.iter().map(async |(node, lost)| {
        let is_alive = clock::timeout(ASK_WITHIN, is_alive(&config, *node, &lost.peer));
        let is_alive = is_alive.await.unwrap_or(true);
        is_alive.then(|| format!("node {node} ({}) at {}", lost.name, lost.peer))
    });
    join_all(asked).await.into_iter().flatten().collect()
}
