//! One netlink socket: requests out, answers back, each refusal with the kernel's own words.
//!
//! Used for rtnetlink and conntrack alike. It is here instead of a ready-made connection because of three
//! things: a dump that others disturbed has to be told from a good one, the kernel's extended error text
//! must reach the user, and a dump of a million entries must not be gathered in memory.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator,
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// The kernel fills at most 32 KiB in one go of a dump.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Why a request over netlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("{}{}", errno.desc(), detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// Its reason.
        errno: Errno,
        /// Its own words, where it has any.
        detail: Option<String>,
    },
    /// Others changed what was being read, each time it was tried.
    #[error("it kept changing while it was read")]
    Interrupted,
    /// An answer is shorter than its kind must be.
    #[error("the kernel's answer is malformed")]
    Malformed,
}

impl NetlinkError {
    /// The kernel's reason, where it is a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Message type.
    pub kind: u16,
    /// Flags beyond `NLM_F_REQUEST`.
    pub flags: u16,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// An open netlink socket. It belongs to the network namespace of the thread that opened it.
pub struct Connection {
    socket: TokioSocket,
    protocol: isize,
    sequence: u32,
    buffer: Vec<u8>,
    /// Answers to an abandoned request may still arrive.
    midway: bool,
}

impl Connection {
    /// Opens a socket of a netlink protocol. Needs a tokio runtime.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        let inner = socket.socket_mut();
        inner.bind_auto()?;
        // Kernels that lack one of them answer all the same.
        let _ = inner.set_ext_ack(true);
        let _ = inner.set_cap_ack(true);
        let _ = inner.set_netlink_get_strict_chk(true);
        Ok(Self {
            socket,
            protocol,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
            midway: false,
        })
    }

    /// Sends one request, a dump or one with `NLM_F_ACK`, and hands on each message of the answer.
    ///
    /// Returns [`NetlinkError::Interrupted`] after the last message of a dump that others disturbed: what was
    /// handed on is then incomplete or doubled.
    pub async fn exchange(
        &mut self,
        request: Request<'_>,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(&[request], 0).await?;
        let mut interrupted = false;
        loop {
            self.receive().await?;
            for message in messages(&self.buffer).filter(|m| m.sequence_number() == sequence) {
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        self.midway = false;
                        outcome(&message)?;
                        return match interrupted {
                            true => Err(NetlinkError::Interrupted),
                            false => Ok(()),
                        };
                    }
                    kind => each(kind, message.payload()),
                }
            }
        }
    }

    /// Sends many requests at once and hands on the refusals, each with the place of its request. They must
    /// not be dumps, and few enough for the socket's buffers: some hundreds.
    pub async fn exchange_all(
        &mut self,
        requests: &[Request<'_>],
        mut refused: impl FnMut(usize, NetlinkError),
    ) -> Result<(), NetlinkError> {
        let Some(last) = requests.len().checked_sub(1) else {
            return Ok(());
        };
        let first = self.send(requests, NLM_F_ACK).await?;
        loop {
            self.receive().await?;
            for message in messages(&self.buffer).filter(|m| m.message_type() == NLMSG_ERROR) {
                let place = message.sequence_number().wrapping_sub(first) as usize;
                if place > last {
                    continue;
                }
                if let Err(error) = outcome(&message) {
                    refused(place, error);
                }
                if place == last {
                    self.midway = false;
                    return Ok(());
                }
            }
        }
    }

    /// Sends requests as one datagram, the last one with further flags. Returns the first one's sequence
    /// number.
    async fn send(&mut self, requests: &[Request<'_>], on_last: u16) -> Result<u32, NetlinkError> {
        if self.midway {
            // A future was dropped between question and answer. A new socket knows nothing of it.
            *self = Self::open(self.protocol)?;
        }
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = if i + 1 == requests.len() { on_last } else { 0 };
            emit(&mut datagram, request, flags, self.sequence)?;
        }
        self.midway = true;
        let sent = self.socket.send(&datagram).await?;
        match sent == datagram.len() {
            true => Ok(first),
            false => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
        }
    }

    async fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer).await
    }
}

fn emit(
    datagram: &mut Vec<u8>,
    request: &Request<'_>,
    flags: u16,
    sequence: u32,
) -> Result<(), NetlinkError> {
    let start = datagram.len();
    let length = HEADER + request.payload.len();
    datagram.resize(start + length.next_multiple_of(4), 0);
    let message = datagram.get_mut(start..start + length);
    let mut message = NetlinkBuffer::new(message.ok_or(NetlinkError::Malformed)?);
    message.set_length(u32::try_from(length).map_err(|_| NetlinkError::Malformed)?);
    message.set_message_type(request.kind);
    message.set_flags(NLM_F_REQUEST | request.flags | flags);
    message.set_sequence_number(sequence);
    message.set_port_number(0);
    message.payload_mut().copy_from_slice(request.payload);
    Ok(())
}

/// The messages of a datagram. One that is cut short ends them.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram).ok()?;
        let length = (message.length() as usize).max(HEADER);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// What `NLMSG_ERROR` or `NLMSG_DONE` says.
fn outcome(message: &NetlinkBuffer<&[u8]>) -> Result<(), NetlinkError> {
    let payload = message.payload();
    let Some(code) = payload.first_chunk() else {
        return Err(NetlinkError::Malformed);
    };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(());
    }
    // NLMSG_ERROR repeats the request's header, NLMSG_DONE does not.
    let words_at = match message.message_type() {
        NLMSG_ERROR => 4 + HEADER,
        _ => 4,
    };
    let words = payload
        .get(words_at..)
        .filter(|_| message.flags() & NLM_F_ACK_TLVS != 0);
    Err(NetlinkError::Refused {
        errno: Errno::from_raw(code.saturating_neg()),
        detail: words.and_then(extended_text),
    })
}

fn extended_text(attributes: &[u8]) -> Option<String> {
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|a| a.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value()).into_owned();
    Some(text.trim_end_matches('\0').to_owned())
}
