//! The netlink socket to nf_tables.
#![expect(unsafe_code, reason = "nix has no options of netlink sockets")]

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self as sock, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::attr::{self, Attrs, Message, Writer};
use super::error::NftError;

/// A socket of the network namespace in which it was opened.
pub struct Socket {
    fd: OwnedFd,
    portid: u32,
    seq: u32,
    buffer: Vec<u8>,
}

/// What the kernel says to one message: 0 is its consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message's sequence number.
    pub seq: u32,
    /// 0, or why it was refused.
    pub errno: i32,
    /// The kernel's own words.
    pub detail: Option<String>,
}

/// A limit, not an allocation. The default of 208 KiB holds about 7,000 elements.
const SEND_BUFFER: usize = 512 << 20;

/// A refused transaction has one answer for each refused message.
const RECEIVE_BUFFER: usize = 16 << 20;

/// The kernel fills at most 32 KiB at a time.
const DATAGRAM: usize = 64 << 10;

/// All answers are there when a call returns: who waits this long waits for ever.
const PATIENCE_SECONDS: i64 = 5;

/// How often a dump is begun anew that others' changes interrupt, and a send for want of memory.
const ATTEMPTS: usize = 10;

/// Numbers of requests start here, so that no transaction's are among them.
const FIRST_SEQ: u32 = 1 << 31;

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let fd = sock::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("open a netlink socket"))?;
        let bound = sock::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .and_then(|()| sock::getsockname::<NetlinkAddr>(fd.as_raw_fd()));
        let portid = bound.map_err(failed("bind the netlink socket"))?.pid();
        // Reasons in words, and refusals that do not carry the refused message.
        set_netlink_option(&fd, libc::NETLINK_EXT_ACK)?;
        set_netlink_option(&fd, libc::NETLINK_CAP_ACK)?;
        sock::setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER)
            .and_then(|()| sock::setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER))
            .map_err(failed("set the netlink socket's buffers"))?;
        sock::setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))
            .map_err(failed("set the netlink socket's timeout"))?;
        Ok(Self {
            fd,
            portid,
            seq: FIRST_SEQ,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// The socket's own port: the owner of tables that it makes.
    pub fn portid(&self) -> u32 {
        self.portid
    }

    /// Sends all pages as one datagram, which the kernel takes as one transaction, and gives its answers.
    /// They are all there when the send returns.
    pub fn transact(&mut self, pages: &[IoSlice<'_>]) -> Result<Vec<Answer>, NftError> {
        self.discard()?;
        self.send(pages)?;
        let mut answers = Vec::new();
        while let Some(length) = self.receive(MsgFlags::MSG_DONTWAIT)? {
            answers.extend(attr::messages(&self.buffer[..length]).filter_map(answer));
        }
        Ok(answers)
    }

    /// One request with one reply, `None` where the kernel knows no such thing.
    pub fn get<T>(
        &mut self,
        kind: i32,
        request: &Writer,
        read: impl FnOnce(Attrs<'_>) -> Option<T>,
    ) -> Result<Option<T>, NftError> {
        let seq = self.request(kind, libc::NLM_F_REQUEST, request)?;
        let length = self
            .receive(MsgFlags::empty())?
            .ok_or(NftError::Malformed("no reply"))?;
        let reply = attr::messages(&self.buffer[..length]).find(|m| m.seq == seq);
        let reply = reply.ok_or(NftError::Malformed("a reply to something else"))?;
        match refusal(&reply) {
            Some(Errno::ENOENT) => Ok(None),
            Some(errno) => Err(failed("read the ruleset")(errno)),
            None => read(reply.attrs())
                .map(Some)
                .ok_or(NftError::Malformed("an attribute is missing")),
        }
    }

    /// Folds a list that the kernel sends in many messages. Where others change the ruleset meanwhile, it
    /// begins anew.
    pub fn dump<T: Default>(
        &mut self,
        kind: i32,
        request: &Writer,
        mut fold: impl FnMut(&mut T, Attrs<'_>),
    ) -> Result<T, NftError> {
        for _ in 0..ATTEMPTS {
            let mut result = T::default();
            if self.dump_once(kind, request, |attrs| fold(&mut result, attrs))? {
                return Ok(result);
            }
        }
        Err(NftError::Interrupted)
    }

    /// Whether the list is whole. It is read to its end in any case.
    fn dump_once(
        &mut self,
        kind: i32,
        request: &Writer,
        mut each: impl FnMut(Attrs<'_>),
    ) -> Result<bool, NftError> {
        let seq = self.request(kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, request)?;
        let mut whole = true;
        loop {
            let length = self
                .receive(MsgFlags::empty())?
                .ok_or(NftError::Malformed("a list without an end"))?;
            for message in attr::messages(&self.buffer[..length]).filter(|m| m.seq == seq) {
                whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        return match refusal(&message) {
                            // What was listed went away.
                            Some(Errno::ENOENT | Errno::EINTR) => Ok(false),
                            Some(errno) => Err(failed("read the ruleset")(errno)),
                            None => Ok(whole),
                        };
                    }
                    _ => each(message.attrs()),
                }
            }
        }
    }

    fn request(&mut self, kind: i32, flags: i32, request: &Writer) -> Result<u32, NftError> {
        self.discard()?;
        self.seq = self.seq.checked_add(1).unwrap_or(FIRST_SEQ);
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        let message = request.message(kind, flags as u16, self.seq);
        self.send(&[IoSlice::new(&message)])?;
        Ok(self.seq)
    }

    fn send(&self, pages: &[IoSlice<'_>]) -> Result<(), NftError> {
        let octets = pages.iter().map(|page| page.len()).sum();
        let mut result = Err(Errno::EINTR);
        for _ in 0..ATTEMPTS {
            result = sock::sendmsg::<NetlinkAddr>(self.fd.as_raw_fd(), pages, &[], MsgFlags::empty(), None);
            if !matches!(result, Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOBUFS)) {
                break;
            }
        }
        match result {
            Ok(sent) if sent == octets => Ok(()),
            Ok(_) | Err(Errno::EMSGSIZE) => Err(NftError::TooLarge { octets }),
            Err(errno) => Err(failed("send to nf_tables")(errno)),
        }
    }

    /// Drops what an earlier request left behind.
    fn discard(&mut self) -> Result<(), NftError> {
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(NftError::Unconfirmed) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The length of the datagram now in the buffer, `None` where there is none.
    fn receive(&mut self, flags: MsgFlags) -> Result<Option<usize>, NftError> {
        loop {
            let flags = flags | MsgFlags::MSG_TRUNC;
            match sock::recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(NftError::Malformed("a datagram above 64 KiB"));
                }
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => return Err(NftError::Unconfirmed),
                Err(errno) => return Err(failed("receive from nf_tables")(errno)),
            }
        }
    }
}

/// For `map_err`.
fn failed(action: &'static str) -> impl Fn(Errno) -> NftError {
    move |source| NftError::Socket { action, source }
}

fn answer(message: Message<'_>) -> Option<Answer> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    if i32::from(message.kind) != libc::NLMSG_ERROR {
        return None;
    }
    let errno = errno(&message)?;
    // The number, then the refused message's header (with NETLINK_CAP_ACK no more of it), then attributes.
    let attrs = Attrs(message.payload.get(4 + attr::HEADER..).unwrap_or_default());
    let has_attrs = i32::from(message.flags) & libc::NLM_F_ACK_TLVS != 0;
    let detail = attrs.text(NLMSGERR_ATTR_MSG).filter(|_| has_attrs);
    Some(Answer {
        seq: message.seq,
        errno,
        detail: detail.map(str::to_owned),
    })
}

/// Why the kernel refused a request, from the message that ends its answer.
fn refusal(message: &Message<'_>) -> Option<Errno> {
    match i32::from(message.kind) {
        libc::NLMSG_ERROR | libc::NLMSG_DONE => errno(message).filter(|n| *n != 0).map(Errno::from_raw),
        _ => None,
    }
}

fn errno(message: &Message<'_>) -> Option<i32> {
    attr::u32_ne(message.payload).map(|n| (n as i32).wrapping_neg())
}

fn set_netlink_option(fd: &OwnedFd, option: i32) -> Result<(), NftError> {
    let on: i32 = 1;
    // SAFETY: the option is an int, which is read during the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(failed("set an option of the netlink socket"))
}
