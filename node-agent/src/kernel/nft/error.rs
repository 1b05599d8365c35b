//! Why nftables could not be read or written.

use nix::errno::Errno;

/// Why nftables could not be read or written. Whatever it is, the ruleset is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// A call on the netlink socket failed.
    #[error("failed to {action}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: Errno,
    },
    /// The kernel refused one step, and with it the transaction.
    #[error("failed to {step}: {errno}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// The step as text.
        step: String,
        /// The kernel's reason.
        errno: Errno,
        /// The kernel's own words, which nf_tables seldom has.
        detail: Option<String>,
    },
    /// A living process owns the table: a second agent, or something else of that name.
    #[error("failed to write the nft table: it is owned by another process (netlink port {portid})")]
    OwnedByOther {
        /// The owner's netlink port, as a rule its process id.
        portid: u32,
    },
    /// A step holds what no message can say. Nothing was sent.
    #[error("failed to encode {step}: {reason}")]
    Invalid {
        /// The step as text.
        step: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The transaction is larger than the socket's buffer may be.
    #[error("failed to send a transaction of {octets} octets in one message")]
    TooLarge {
        /// Its size.
        octets: usize,
    },
    /// The kernel neither refused nor confirmed the transaction, or its answers were lost.
    #[error("failed to learn the outcome of a transaction")]
    Unconfirmed,
    /// Others changed the ruleset during each of several attempts to read it.
    #[error("failed to read the ruleset: it kept changing")]
    Interrupted,
    /// The kernel's answer is not of the expected form.
    #[error("failed to understand the kernel's answer: {0}")]
    Malformed(&'static str),
}

impl NftError {
    /// One word for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Socket { .. } => "NftSocket",
            Self::Refused { .. } => "NftRefused",
            Self::OwnedByOther { .. } => "NftOwnedByOther",
            Self::Invalid { .. } => "NftInvalid",
            Self::TooLarge { .. } => "NftTooLarge",
            Self::Unconfirmed => "NftUnconfirmed",
            Self::Interrupted => "NftInterrupted",
            Self::Malformed(_) => "NftMalformed",
        }
    }
}
