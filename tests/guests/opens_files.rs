//! Uses files through the standard library: `read` opens one of the host's, `write` creates one, `list` reads a directory.
//! Each answers with the kind of the error, which is an ordinary answer.

use std::fs;

use skep_guest::{Context, Rejection};
use skep_test_guests::{Attack, Guest};

#[derive(Default)]
struct OpensFiles;

impl Attack for OpensFiles {
    const NAME: &'static str = "opens-files";

    fn apply(&mut self, _ctx: &Context, request: &[u8]) -> Option<Result<Vec<u8>, Rejection>> {
        let error = match request {
            b"read" => fs::read("/etc/passwd").err(),
            b"write" => fs::write("skep.toml", "owned").err(),
            b"list" => fs::read_dir(".").err(),
            _ => return None,
        };
        let answer = error.map_or("opened".to_owned(), |error| error.kind().to_string());
        Some(Ok(answer.into_bytes()))
    }
}

skep_guest::export!(Guest<OpensFiles>);
