//! What the kernel announces, read as plain octets: of several messages that belong together, one word.

use std::io;
use std::time::Duration;

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;
use tokio::time::{Instant, timeout_at};

use super::netlink;
use super::nft::attr::{self, Message};

/// What overflows is not lost: it is reported as a change.
const SOCKET_BUFFER: libc::c_int = 1024 * 1024;
const DATAGRAM: usize = 64 << 10;

/// A socket of multicast groups.
pub(super) struct Listener {
    socket: TokioSocket,
    /// How long what follows a change belongs to it.
    gather: Duration,
    /// When a change came that nobody has been told of.
    pending: Option<Instant>,
}

impl Listener {
    /// Listens to groups of a netlink protocol in the calling thread's network namespace, from now on. Needs a tokio
    /// runtime.
    pub(super) fn open(protocol: isize, groups: &[u32], gather: Duration) -> io::Result<Self> {
        let mut socket = netlink::open(protocol)?;
        let inner = socket.socket_mut();
        inner.set_rx_buf_sz(SOCKET_BUFFER)?;
        for group in groups {
            inner.add_membership(*group)?;
        }
        let pending = None;
        Ok(Self {
            socket,
            gather,
            pending,
        })
    }

    /// Waits for a message that concerns us, and for what comes with it. Nothing is lost when the future is dropped.
    pub(super) async fn changed(&mut self, concerns: impl Fn(&Message<'_>) -> bool) -> io::Result<()> {
        loop {
            let told = match self.pending {
                None => self.receive(&concerns).await?,
                Some(first) => match timeout_at(first + self.gather, self.receive(&concerns)).await {
                    Ok(told) => told?,
                    Err(_) => {
                        self.pending = None;
                        return Ok(());
                    }
                },
            };
            if told && self.pending.is_none() {
                self.pending = Some(Instant::now());
            }
        }
    }

    /// Whether what has just come concerns us.
    async fn receive(&mut self, concerns: impl Fn(&Message<'_>) -> bool) -> io::Result<bool> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        match self.socket.recv(&mut datagram).await {
            Ok(()) => Ok(attr::messages(&datagram).any(|message| concerns(&message))),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
