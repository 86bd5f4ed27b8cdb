//! Invitations: who may join. A token is good for one node and for some time, which is that of the log.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_core::id::NodeId;

use super::Catalog;
use super::command::{Refusal, Reply};

/// Most invitations that are open at a time.
pub const INVITATIONS_MAX: usize = 256;
/// Longest that an invitation is good for, in seconds: 30 days.
pub const INVITATION_SECONDS_MAX: u32 = 30 * 24 * 3600;

const NANOS: u64 = 1_000_000_000;

/// The sha256 of a token. The token itself is nowhere in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TokenDigest(pub [u8; 32]);

/// A token that nobody has come with yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Invitation {
    /// It is good before this time of the log, in nanoseconds.
    expires: u64,
}

impl TokenDigest {
    /// Of a token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({self})")
    }
}

impl From<TokenDigest> for String {
    fn from(digest: TokenDigest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for TokenDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|digit| digit.to_digit(16).map(|value| value as u8))
            .collect();
        let bytes: Option<Vec<u8>> = digits.map(|digits| {
            let pairs = digits.chunks(2);
            pairs
                .map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0))
                .collect()
        });
        match bytes.map(<[u8; 32]>::try_from) {
            Some(Ok(digest)) if text.len() == 64 => Ok(Self(digest)),
            _ => Err("expected 64 hexadecimal digits"),
        }
    }
}

impl Catalog {
    /// Invitations that nobody has used, also those that have expired since.
    pub fn invitations(&self) -> usize {
        self.invitations.len()
    }

    pub(super) fn invite(
        &mut self,
        now: u64,
        token: TokenDigest,
        seconds: u32,
    ) -> Result<Reply, Refusal> {
        if !(1..=INVITATION_SECONDS_MAX).contains(&seconds) {
            return Err(Refusal::Invalid(format!(
                "an invitation is good for 1 to {INVITATION_SECONDS_MAX} seconds, not {seconds}"
            )));
        }
        if self.invitations.contains_key(&token) || self.used.contains_key(&token) {
            let message = "this token was given before; take another";
            return Err(Refusal::Exists(message.to_owned()));
        }
        let open = |invitation: &Invitation| now < invitation.expires;
        if self.invitations.values().filter(|of| open(of)).count() >= INVITATIONS_MAX {
            return Err(Refusal::Full(format!(
                "{INVITATIONS_MAX} invitations are open, the most there may be; use some, or wait until they expire"
            )));
        }
        self.invitations.retain(|_, invitation| open(invitation));
        let expires = now.saturating_add(u64::from(seconds) * NANOS);
        self.invitations.insert(token, Invitation { expires });
        Ok(Reply::Done)
    }

    /// Whether somebody may join with this token now.
    pub(super) fn check_invited(&self, now: u64, token: TokenDigest) -> Result<(), Refusal> {
        match self.invitations.get(&token) {
            Some(invitation) if now < invitation.expires => Ok(()),
            Some(_) => Err(Refusal::InvitationExpired(
                "the invitation has expired; ask for another with `skep node invite`".to_owned(),
            )),
            None => Err(Refusal::NotInvited(
                "nobody was invited with this token, or long ago; ask for one with `skep node invite`"
                    .to_owned(),
            )),
        }
    }

    /// Nobody else comes with this token.
    pub(super) fn use_up(&mut self, token: TokenDigest, node: NodeId) {
        self.invitations.remove(&token);
        self.used.insert(token, node);
    }
}
