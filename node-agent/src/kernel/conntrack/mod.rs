//! Conntrack entries: to look through, and to delete.

mod attribute;
mod flow;

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{Emitable, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

pub use flow::{Flow, Layer4, Tuple};

use self::attribute::Attribute;
use self::flow::{cta, source};
use super::netlink::{Connection, NetlinkError, Request};

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

/// Length of `struct nfgenmsg`.
const NFGEN: usize = 4;

/// Entries deleted with one message to the socket. Each may be answered with an error, for which there has
/// to be room.
const BATCH: usize = 128;

/// Why conntrack could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No socket.
    #[error("failed to open a netlink socket for conntrack: {0}")]
    Open(#[source] io::Error),
    /// Entries could not be read.
    #[error("failed to read conntrack entries: {0}")]
    Read(#[source] NetlinkError),
    /// Entries could not be deleted.
    #[error("failed to delete conntrack entries: {0}")]
    Delete(#[source] NetlinkError),
    /// Nothing to tell the entries by: it would be all of them.
    #[error("failed to delete conntrack entries by mark: the mask is empty")]
    EmptyMask,
}

impl ConntrackError {
    /// One word for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Open(_) => "conntrack_socket",
            Self::Read(_) => "conntrack_read",
            Self::Delete(_) => "conntrack_delete",
            Self::EmptyMask => "conntrack_empty_mask",
        }
    }
}

/// Which entries are looked at. What is absent does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Source address of the original direction.
    pub source: Option<IpAddr>,
    /// Connection mark, as value and mask.
    pub mark: Option<(u32, u32)>,
}

impl Filter {
    fn takes(&self, flow: &Flow) -> bool {
        self.source.is_none_or(|source| flow.original.source == source)
            && self
                .mark
                .is_none_or(|(mark, mask)| flow.mark & mask == mark & mask)
    }

    /// What the kernel can be asked to look at. It ignores what it does not know, so that what comes is
    /// judged once more.
    ///
    /// Never an IPv6 address: from 5.8, which first had the filter, to 6.18 at least, the kernel takes all
    /// entries *but* those of the address (`ctnetlink_filter_match_tuple` has the comparison inverted), and a
    /// deletion would hit everybody else.
    fn attributes(&self) -> Vec<Attribute> {
        let mut attributes = Vec::new();
        if let Some((mark, mask)) = self.mark {
            attributes.push(Attribute::u32(cta::MARK, mark & mask));
            attributes.push(Attribute::u32(cta::MARK_MASK, mask));
        }
        if let Some(address) = self.source.filter(IpAddr::is_ipv4) {
            let ip = Attribute::Nested(cta::TUPLE_IP, vec![source(address)]);
            attributes.push(Attribute::Nested(cta::TUPLE_ORIG, vec![ip]));
            // Compare the source of the original direction, and nothing else. In host byte order.
            let flags = |kind, flags: u32| Attribute::Octets(kind, flags.to_ne_bytes().to_vec());
            attributes.push(Attribute::Nested(
                cta::FILTER,
                vec![
                    flags(cta::FILTER_ORIG_FLAGS, 1),
                    flags(cta::FILTER_REPLY_FLAGS, 0),
                ],
            ));
        }
        attributes
    }

    fn family(&self) -> u8 {
        self.source.map_or(libc::AF_UNSPEC, address_family) as u8
    }
}

/// The conntrack table of a network namespace.
pub struct Conntrack {
    connection: Connection,
    /// Not all kernels can delete by address.
    deletes_by_source: bool,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self, ConntrackError> {
        Ok(Self {
            connection: Connection::open(NETLINK_NETFILTER).map_err(ConntrackError::Open)?,
            deletes_by_source: true,
        })
    }

    /// Shows each entry to `each`, while they come: none are kept. Where the kernel resizes its table
    /// meanwhile, an entry may be shown twice or not at all.
    pub async fn for_each(
        &mut self,
        filter: Filter,
        mut each: impl FnMut(&Flow),
    ) -> Result<(), ConntrackError> {
        let payload = payload(filter.family(), &filter.attributes());
        let request = Request {
            kind: GET,
            flags: NLM_F_DUMP,
            payload: &payload,
        };
        let look = |kind, payload: &[u8]| {
            let flow = payload.get(NFGEN..).filter(|_| kind == NEW).and_then(Flow::read);
            if let Some(flow) = flow.filter(|f| filter.takes(f)) {
                each(&flow);
            }
        };
        match self.connection.exchange(request, look).await {
            Ok(()) | Err(NetlinkError::Interrupted) => Ok(()),
            Err(source) => Err(ConntrackError::Read(source)),
        }
    }

    /// The entries that `filter` takes and `wanted` says yes to.
    pub async fn flows(
        &mut self,
        filter: Filter,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, ConntrackError> {
        let mut flows = Vec::new();
        self.for_each(filter, |flow| flows.extend(wanted(flow).then_some(*flow)))
            .await?;
        Ok(flows)
    }

    /// Deletes entries. Those that are gone are none's concern, also where another took their place.
    pub async fn delete(&mut self, flows: &[Flow]) -> Result<(), ConntrackError> {
        for flows in flows.chunks(BATCH) {
            let payloads: Vec<_> = flows
                .iter()
                .map(|f| payload(address_family(f.original.source) as u8, &f.identity()))
                .collect();
            let requests: Vec<_> = payloads.iter().map(|p| deletion(p)).collect();
            self.delete_all(&requests).await?;
        }
        Ok(())
    }

    /// Deletes the entries whose mark under `mask` is `mark`, of both families.
    pub async fn delete_by_mark(&mut self, mark: u32, mask: u32) -> Result<(), ConntrackError> {
        if mask == 0 {
            return Err(ConntrackError::EmptyMask);
        }
        let filter = Filter {
            source: None,
            mark: Some((mark, mask)),
        };
        let payload = payload(filter.family(), &filter.attributes());
        self.delete_all(&[deletion(&payload)]).await
    }

    /// Deletes the entries whose original direction comes from `source`: with one message where the kernel
    /// can do that, otherwise after a look through all entries of the family.
    pub async fn delete_by_source(&mut self, source: IpAddr) -> Result<(), ConntrackError> {
        let filter = Filter {
            source: Some(source),
            mark: None,
        };
        if source.is_ipv4() && self.deletes_by_source {
            let payload = payload(filter.family(), &filter.attributes());
            match self.delete_all(&[deletion(&payload)]).await {
                // Without the filter the kernel takes the tuple for that of one entry, and misses the rest
                // of it.
                Err(ConntrackError::Delete(e))
                    if matches!(e.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) =>
                {
                    self.deletes_by_source = false;
                }
                outcome => return outcome,
            }
        }
        let flows = self.flows(filter, |_| true).await?;
        self.delete(&flows).await
    }

    async fn delete_all(&mut self, requests: &[Request<'_>]) -> Result<(), ConntrackError> {
        let mut outcome = Ok(());
        let refused = |_, error: NetlinkError| {
            if error.errno() != Some(Errno::ENOENT) && outcome.is_ok() {
                outcome = Err(ConntrackError::Delete(error));
            }
        };
        self.connection
            .exchange_all(requests, refused)
            .await
            .map_err(ConntrackError::Delete)?;
        outcome
    }
}

fn deletion(payload: &[u8]) -> Request<'_> {
    Request {
        kind: DELETE,
        flags: 0,
        payload,
    }
}

fn payload(family: u8, attributes: &[Attribute]) -> Vec<u8> {
    let mut payload = vec![0; NFGEN + attributes.buffer_len()];
    let (header, rest) = payload.split_at_mut(NFGEN);
    header[0] = family;
    attributes.emit(rest);
    payload
}

fn address_family(address: IpAddr) -> libc::c_int {
    match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    }
}
