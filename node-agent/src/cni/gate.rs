//! What plugin and agent say to one another: one request and one answer a connection, each a line of JSON.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::{PodName, ValidAttachment};

/// The longest line that either side reads, in bytes.
pub const LONGEST: u64 = 1 << 20;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all_fields = "camelCase")]
pub enum Request {
    /// Let the pod use its addresses.
    Add {
        /// The pod.
        pod: PodName,
        /// Where its addresses are.
        attachment: ValidAttachment,
        /// Its addresses.
        addresses: BTreeSet<IpAddr>,
        /// How long the agent may wait for the plan to name the pod, in milliseconds.
        patience: u64,
    },
    /// Whether the pod's addresses are still programmed as they must.
    Check {
        /// The pod.
        pod: PodName,
        /// Its addresses.
        addresses: BTreeSet<IpAddr>,
    },
    /// The pod's network is gone.
    Del {
        /// Where its addresses were.
        attachment: ValidAttachment,
    },
    /// Only these are left.
    Gc {
        /// The attachments that are still there.
        valid: BTreeSet<ValidAttachment>,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer")]
pub enum Answer {
    /// The pod is selected, and the kernel knows it.
    Programmed,
    /// No policy selects the pod.
    NotSelected,
    /// Done: DEL and GC.
    Done,
    /// An address of the pod is still captured for another pod, and the agent cannot change that.
    Taken {
        /// Which.
        address: IpAddr,
    },
    /// The agent cannot say yet, or cannot do it; why, in words for people.
    NotYet {
        /// Why.
        why: String,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Nobody listens, or the connection broke.
    #[error("failed to reach the agent: {0}")]
    Unreachable(#[from] std::io::Error),
    /// The answer is none.
    #[error("failed to read the agent's answer: {0}")]
    Garbled(#[from] serde_json::Error),
}

/// Asks the agent that listens at `socket`, and waits at most `patience` for its answer.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Answer, GateError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
