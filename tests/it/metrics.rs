//! What a node counts, and what the reference says of it.

use std::collections::BTreeSet;

use skep_tests::cluster::{Cluster, Settings};

const REFERENCE: &str = include_str!("../../docs/reference/metrics.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_has_every_metric_and_no_other() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    for (method, request) in [("propose", "put a 1"), ("query", "get a")] {
        let path = format!("/v1/groups/{group}/{method}");
        let answer = cluster.http(1, "POST", &path, request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let text = cluster.http(1, "GET", "/metrics", "").await.text();
    let types = text.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let lanes = ["high", "normal", "low"].map(|lane| format!("peer_{lane}_"));
        let lane = lanes.iter().find(|lane| name.contains(*lane));
        Some(lane.map_or(name.to_owned(), |lane| name.replace(lane, "peer_LANE_")))
    });
    let spans = REFERENCE.split('`').skip(1).step_by(2);
    let names = spans.filter_map(|span| {
        let name = span.split('{').next()?.trim_end_matches("_total");
        (name.starts_with("skep_") && name != "skep_").then(|| name.to_owned())
    });
    let (shown, said): (BTreeSet<_>, BTreeSet<_>) = (types.collect(), names.collect());
    assert!(shown.len() > 40, "{text}");
    assert_eq!(shown, said);
}
