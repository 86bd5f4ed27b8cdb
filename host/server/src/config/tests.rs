//! Configuration files, and what is wrong with them.

use super::*;

const EXAMPLE: &str = include_str!("../../../skep.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("skep.toml"), [])
}

fn message(text: &str) -> String {
    parse(text).expect_err("an error was expected").to_string()
}

fn with(key: &str, value: &str) -> Result<Config, ConfigError> {
    Config::parse(
        EXAMPLE,
        Path::new("skep.toml"),
        [(key.to_owned(), value.to_owned())],
    )
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.raft, RaftSection::default());
    assert_eq!(config.limits, LimitsSection::default());
    assert_eq!(config.http, HttpSection::default());
    assert_eq!(config.node_name(), "node-1");
    assert_eq!(config.listen_client(), "127.0.0.1:7401");
    assert_eq!(config.cluster.nodes.len(), 3);
    assert_eq!(
        config.cluster.replace_voter_seconds,
        replace_voter_seconds()
    );
    assert!(!config.cluster.fixed_addresses && !config.joins());
}

#[test]
fn a_node_that_joins_needs_no_id_and_no_list_but_addresses() {
    let text = r#"
        node = { data_dir = "x", peer = "127.0.0.1:1", client = "127.0.0.1:2", http = "127.0.0.1:3" }
        cluster = { join = ["10.0.0.1:7401"] }"#;
    let config = parse(text).unwrap();
    assert!(config.joins());
    assert_eq!(config.listen_http(), "127.0.0.1:3");
    assert_eq!(config.own().peer, "127.0.0.1:1");
    for (from, to, named) in [
        ("peer = \"127.0.0.1:1\", ", "", "node.peer"),
        ("10.0.0.1:7401", "10.0.0.1", "cluster.join[0]"),
        ("join", "id = \"a b\", join", "cluster.id"),
        ("127.0.0.1:3", "0.0.0.0:3", "listen.http"),
        ("join = [\"10.0.0.1:7401\"]", "id = \"a\"", "node.id"),
    ] {
        let message = message(&text.replace(from, to));
        assert!(message.contains(named), "{named}: {message}");
    }
}

#[test]
fn a_typo_names_key_line_and_suggestion() {
    let text = EXAMPLE.replace("tick_ms = 100", "tik_ms = 100");
    let line = text
        .lines()
        .position(|line| line.starts_with("tik_ms"))
        .unwrap()
        + 1;
    let message = message(&text);
    assert!(message.contains("skep.toml"), "{message}");
    assert!(message.contains(&format!("line {line},")), "{message}");
    assert!(message.contains("unknown field `tik_ms`"), "{message}");
    assert!(message.contains("did you mean `tick_ms`?"), "{message}");
}

#[test]
fn the_environment_overrides_the_file() {
    assert_eq!(with("SKEP_RAFT__TICK_MS", "20").unwrap().raft.tick_ms, 20);
    assert_eq!(with("SKEP_NODE__NAME", "left").unwrap().node_name(), "left");
    assert_eq!(with("SKEP_NODE__NAME", "12").unwrap().node_name(), "12");
    assert!(
        with("SKEP_LISTEN__INSECURE_PLAINTEXT", "true")
            .unwrap()
            .listen
            .insecure_plaintext
    );
    assert_eq!(with("OTHER_RAFT__TICK_MS", "20").unwrap().raft.tick_ms, 100);
    assert_eq!(with("SKEP_AT", "127.0.0.1:1").unwrap().raft.tick_ms, 100);
}

#[test]
fn a_wrong_variable_is_named() {
    for (key, value) in [
        ("SKEP_RAFT__TIK_MS", "20"),
        ("SKEP_RAFT__TICK_MS", "soon"),
        ("SKEP_RAFFT__TICK_MS", "1"),
    ] {
        let error = with(key, value).unwrap_err();
        assert!(
            matches!(error, ConfigError::Environment { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn values_that_make_no_sense_name_their_key() {
    for (key, value, named) in [
        ("SKEP_NODE__ID", "0", "node.id"),
        ("SKEP_NODE__ID", "9", "cluster.nodes"),
        ("SKEP_NODE__NAME", "a b", "node.name"),
        ("SKEP_CLUSTER__ID", "", "cluster.id"),
        ("SKEP_LISTEN__PEER", "0.0.0.0:7301", "listen.peer"),
        ("SKEP_LISTEN__HTTP", "127.0.0.1", "listen.http"),
        ("SKEP_LISTEN__CLIENT", "127.0.0.1:0", "listen.client"),
        ("SKEP_RAFT__ELECTION_TICKS", "2", "raft.election_ticks"),
        ("SKEP_RAFT__HEARTBEAT_TICKS", "0", "raft.heartbeat_ticks"),
        ("SKEP_RAFT__TICK_MS", "0", "raft.tick_ms"),
        ("SKEP_RAFT__SNAPSHOT_ENTRIES", "0", "raft.snapshot_entries"),
        ("SKEP_RAFT__SHARDS", "257", "raft.shards"),
        ("SKEP_LIMITS__COMMAND_BYTES", "0", "limits.command_bytes"),
        (
            "SKEP_CLUSTER__REPLACE_VOTER_SECONDS",
            "0",
            "cluster.replace_voter_seconds",
        ),
        ("SKEP_LOG__FILTER", "skep=loud", "log.filter"),
    ] {
        let error = with(key, value).expect_err(key);
        assert!(
            matches!(&error, ConfigError::Invalid { key, .. } if key == named),
            "{key}={value}: {error:?}"
        );
    }
}

#[test]
fn nodes_and_addresses_are_given_once() {
    let message = message(&EXAMPLE.replace("id = 3", "id = 2"));
    assert!(
        message.contains("cluster.nodes[2]") && message.contains("twice"),
        "{message}"
    );
    let twice = EXAMPLE.replace("127.0.0.1:7402", "127.0.0.1:7401");
    assert!(matches!(parse(&twice), Err(ConfigError::Invalid { .. })));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nowhere/skep.toml"), []).unwrap_err();
    assert!(error.to_string().contains("/nowhere/skep.toml"), "{error}");
}

#[test]
fn loopback_is_recognised() {
    for (address, expected) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("localhost:1", true),
        ("0.0.0.0:1", false),
        ("10.0.0.1:1", false),
        ("example.org:1", false),
    ] {
        assert_eq!(is_loopback(address), expected, "{address}");
    }
}
