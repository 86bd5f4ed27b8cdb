//! What went wrong, in words and as an exit code.

use std::fmt;
use std::process::ExitCode;

use skep_core::outcome::Outcome;
use skep_core::printable::{printable, printable_lines};
use skep_server::error::HostError;
use skep_types::code::Code;
pub use skep_types::code::Exit;

/// A failure with a stable code, as a node or the machine told it.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    /// What the machine says beside the code.
    more: String,
    message: String,
    exit: Exit,
}

impl Failure {
    /// A failure of a stable code.
    pub fn new(code: Code, message: impl Into<String>, exit: Exit) -> Self {
        Self {
            code,
            more: String::new(),
            message: message.into(),
            exit,
        }
    }

    /// The failure that an error of the server's libraries is.
    pub fn of(error: impl Into<HostError>) -> Self {
        Self::from(error.into())
    }

    fn told(code: Code, more: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            more: format!(" {more}"),
            ..Self::new(code, message, code.exit())
        }
    }

    /// The failure that an outcome is, unless it is a reply.
    pub fn of_outcome(outcome: Outcome) -> Result<bytes::Bytes, Self> {
        match outcome {
            Outcome::Reply(reply) => Ok(reply),
            Outcome::Rejected { code, message } => {
                Err(Self::told(Code::Rejected, code, printable(&message)))
            }
            Outcome::Refused { code, message } => {
                Err(Self::told(Code::RefusedByHost, code, message))
            }
            Outcome::Fault(fault) => {
                let next = fault
                    .profile_key()
                    .map(|key| format!("; the group's profile key `{key}` raises the limit"));
                let message = format!(
                    "the machine failed on this request; its state is as if it had never been made{}",
                    next.unwrap_or_default()
                );
                Err(Self::told(Code::GuestFault, fault, message))
            }
        }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let exit = exit(error.is_unknown(), error.is_retryable());
        Self::new(error.code(), error.chain(), exit)
    }
}

/// The exit code of a failed request.
pub fn exit(unknown: bool, retryable: bool) -> Exit {
    match (unknown, retryable) {
        (true, _) => Exit::Unknown,
        (false, true) => Exit::Unavailable,
        (false, false) => Exit::Failed,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}{}]", self.message, self.code, self.more)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let failure = error.downcast_ref::<Failure>();
    ExitCode::from(failure.map_or(Exit::Failed, |failure| failure.exit) as u8)
}

/// An error and all its causes, in lines.
pub fn report(error: &anyhow::Error) -> String {
    let mut text = format!("error: {}\n", printable_lines(&error.to_string()));
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // An error that passes its cause on as its own words would say it twice.
        if !said.contains(&cause) {
            text.push_str(&format!("\nCaused by:\n    {}\n", printable_lines(&cause)));
        }
        said = cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_says_does_nothing_to_who_reads_it() {
        let rejected = Failure::of_outcome(Outcome::Rejected {
            code: 1,
            message: "\u{1b}[2J\u{202e}no\nerror: forged".into(),
        });
        assert_eq!(
            rejected.unwrap_err().to_string(),
            "\\u{1b}[2J\\u{202e}no\\nerror: forged [rejected 1]"
        );
    }

    #[test]
    fn exit_codes_tell_what_a_script_must_know() {
        assert_eq!(exit(false, false) as u8, 1);
        assert_eq!(exit(false, true) as u8, 3);
        assert_eq!(exit(true, true) as u8, 4);
        let rejected = Failure::of_outcome(Outcome::Rejected {
            code: 404,
            message: "no such key".into(),
        });
        let failure = rejected.unwrap_err();
        assert_eq!(
            (failure.exit as u8, failure.to_string().as_str()),
            (5, "no such key [rejected 404]")
        );
        let wrapped = anyhow::Error::new(failure).context("while asking");
        assert_eq!(
            wrapped
                .downcast_ref::<Failure>()
                .map(|failure| failure.exit),
            Some(Exit::Rejected)
        );
    }
}
