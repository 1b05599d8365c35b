//! What rtnetlink and conntrack have in common: how a socket is opened, and how an exchange over it ends.

use std::io;

use netlink_packet_core::{NLM_F_ACK_TLVS, NetlinkMessage, NetlinkPayload, NlasIterator};
use netlink_sys::{AsyncSocket, TokioSocket};
use nix::errno::Errno;

const NLMSGERR_ATTR_MSG: u16 = 1;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Why a request over netlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The socket failed, and only the library's log knows why.
    #[error("the netlink socket is closed")]
    Closed,
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

/// Opens a socket of a netlink protocol in the calling thread's network namespace. Needs a tokio runtime.
pub(super) fn open(protocol: isize) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    // Kernels that lack one of them answer all the same.
    let _ = inner.set_ext_ack(true);
    let _ = inner.set_cap_ack(true);
    let _ = inner.set_netlink_get_strict_chk(true);
    Ok(socket)
}

/// How the request ended, where `message` is the last one of its answer.
pub(super) fn end<T>(message: &NetlinkMessage<T>) -> Option<Result<(), NetlinkError>> {
    let (code, words) = match &message.payload {
        // The request's header comes first.
        NetlinkPayload::Error(error) => (error.raw_code(), error.header.get(HEADER..)),
        NetlinkPayload::Done(done) => (done.code, Some(done.extended_ack.as_slice())),
        NetlinkPayload::Overrun(_) => return Some(Err(io::Error::from(Errno::ENOBUFS).into())),
        _ => return None,
    };
    if code >= 0 {
        return Some(Ok(()));
    }
    let words = words.filter(|_| message.header.flags & NLM_F_ACK_TLVS != 0);
    Some(Err(NetlinkError::Refused {
        errno: Errno::from_raw(code.saturating_neg()),
        detail: words.and_then(extended_text),
    }))
}

fn extended_text(attributes: &[u8]) -> Option<String> {
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|a| a.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value()).into_owned();
    Some(text.trim_end_matches('\0').to_owned())
}
