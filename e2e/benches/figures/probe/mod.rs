//! What is measured on a way: single-stream TCP, small UDP datagrams, connections, round trips.
//!
//! Sockets are new each time, and so are their conntrack entries. Each end has a core of its own; where one
//! waits for the other at every step both share one, since a wake-up across cores would be all that is seen.

mod datagram;
mod stream;

use std::{io, net::IpAddr, os::fd::AsFd, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use egressnat_e2e::netns::Netns;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
    unistd::Pid,
};

pub use datagram::{round_trip, udp_pps};
pub use stream::{connections, tcp_throughput};

/// A client and a server, and what lies between them.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Where the client is.
    pub client: &'a Netns,
    /// Where the server is.
    pub server: &'a Netns,
    /// The server's address.
    pub address: IpAddr,
}

/// How long one measurement takes.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Not counted, at the beginning.
    pub warm_up: Duration,
    /// Counted.
    pub counted: Duration,
}

/// The core of whoever sends; packets are also forwarded there.
const SENDER: usize = 0;
/// The core of whoever only receives.
const RECEIVER: usize = 1;

/// An end that hears nothing for so long has lost the other.
const PATIENCE_SECONDS: i64 = 5;
/// Ends a server; no other message is one octet of this value.
const QUIT: u8 = b'q';

/// Accepting, reading and writing give up after [`PATIENCE_SECONDS`].
fn limit(socket: &impl AsFd) -> Result<()> {
    let limit = TimeVal::seconds(PATIENCE_SECONDS);
    setsockopt(socket, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(socket, sockopt::SendTimeout, &limit)?;
    Ok(())
}

/// Runs both ends at the same time.
fn ends<A: Send, B: Send>(
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> Result<(A, B)> {
    thread::scope(|scope| {
        let (first, second) = (scope.spawn(first), scope.spawn(second));
        let died = |_| anyhow!("one end has panicked");
        Ok((first.join().map_err(died)?, second.join().map_err(died)?))
    })
}

/// Runs `work` with the calling thread on one core, where it stays.
fn pinned<T>(core: usize, work: impl FnOnce() -> io::Result<T>) -> Result<T> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("failed to use core {core}"))?;
    Ok(work()?)
}
