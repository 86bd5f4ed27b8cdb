//! What HTTP requests say, and how they are read.

use skep_core::id::as_text;

use super::*;

fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| ((*name).clone(), value.parse().unwrap()))
        .collect()
}

#[test]
fn a_command_is_anonymous_or_named_in_full() {
    let data = Bytes::from_static(b"put a 1");
    assert_eq!(
        command(&headers(&[]), data.clone()).unwrap().request,
        RequestId::ANONYMOUS
    );
    let named = command(&headers(&[(&SESSION, "7"), (&SEQUENCE, "3")]), data.clone()).unwrap();
    assert_eq!(
        named.request,
        RequestId {
            session: SessionId(7),
            sequence: 3
        }
    );
    assert_eq!(
        named.acknowledged, 0,
        "1 and 2 may be in flight as well as 3"
    );
    let said = [(&SESSION, "7"), (&SEQUENCE, "3"), (&ACKNOWLEDGED, "1")];
    assert_eq!(
        command(&headers(&said), data.clone()).unwrap().acknowledged,
        1
    );
    for wrong in [
        headers(&[(&ACKNOWLEDGED, "1")]),
        headers(&[(&SESSION, "7"), (&SEQUENCE, "3"), (&ACKNOWLEDGED, "3")]),
        headers(&[(&SESSION, "7")]),
        headers(&[(&SEQUENCE, "7")]),
        headers(&[(&SESSION, "0"), (&SEQUENCE, "1")]),
        headers(&[(&SESSION, "7"), (&SEQUENCE, "x")]),
    ] {
        assert_eq!(command(&wrong, data.clone()).unwrap_err().status, 400);
    }
}

#[test]
fn answers_carry_their_place_whether_reply_or_rejection() {
    for answer in [
        Outcome::Reply(Bytes::from_static(b"1")),
        Outcome::Rejected {
            code: 1,
            message: "no".into(),
        },
    ] {
        let response = outcome(answer, 9, 2);
        assert_eq!(
            (&response.headers()[INDEX], &response.headers()[TERM]),
            (&"9".parse().unwrap(), &"2".parse().unwrap())
        );
    }
}

#[test]
fn a_number_is_text_for_others_only_and_both_are_read() {
    let large = LogIndex(u64::MAX);
    assert_eq!(serde_json::to_string(&large).unwrap(), u64::MAX.to_string());
    let shown = as_text(|| serde_json::to_string(&large).unwrap());
    assert_eq!(shown, format!("\"{}\"", u64::MAX));
    assert_eq!(serde_json::to_string(&NodeId(1)).unwrap(), "1");
    for text in [shown.as_str(), "18446744073709551615"] {
        assert_eq!(serde_json::from_str::<LogIndex>(text).unwrap(), large);
    }
    for wrong in [
        "-1",
        "\"-1\"",
        "\"+1\"",
        "\"\"",
        "1.5",
        "\"x\"",
        "18446744073709551616",
    ] {
        assert!(serde_json::from_str::<LogIndex>(wrong).is_err(), "{wrong}");
    }
}
