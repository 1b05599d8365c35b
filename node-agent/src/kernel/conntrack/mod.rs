//! Conntrack entries: to look through, and to delete.

mod flow;
mod wire;

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, Nla};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::conntrack::{ConntrackMessage, ConntrackMessageType, IPTuple};
use nix::errno::Errno;

pub use flow::{Flow, Layer4, Tuple};

use self::flow::{cta, octets};
use self::wire::{Request, Wire};
use super::netlink::NetlinkError;

/// `linux/netfilter/nfnetlink_conntrack.h`.
const IPCTNL_MSG_CT_GET_STATS_CPU: u8 = 4;

/// Entries deleted before the answers are read. Each may be answered with an error, for which there has
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
            Self::Open(_) => "ConntrackSocket",
            Self::Read(_) => "ConntrackRead",
            Self::Delete(_) => "ConntrackDelete",
            Self::EmptyMask => "ConntrackEmptyMask",
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

    /// Asks the kernel to look at nothing else. It ignores what it does not know, so that what comes is judged
    /// once more.
    ///
    /// Never by an IPv6 address: from 5.8, which first had the filter, to 6.18 at least, the kernel takes all
    /// entries *but* those of the address (`ctnetlink_filter_match_tuple` has the comparison inverted), and a
    /// deletion would hit everybody else.
    ///
    /// The attributes are untyped because the library's typed ones have no filter, and lose the mark of being
    /// nested, without which the kernel refuses it.
    fn request(&self, kind: ConntrackMessageType) -> Request {
        let mut attributes = Vec::new();
        if let Some((mark, mask)) = self.mark {
            attributes.push(DefaultNla::new(cta::MARK, (mark & mask).to_be_bytes().to_vec()));
            attributes.push(DefaultNla::new(cta::MARK_MASK, mask.to_be_bytes().to_vec()));
        }
        if let Some(address) = self.source.filter(IpAddr::is_ipv4) {
            let ip = nested(cta::TUPLE_IP, &[IPTuple::SourceAddress(address)]);
            attributes.push(nested(cta::TUPLE_ORIG, &[ip]));
            // Compare the source of the original direction, and nothing else. In host byte order.
            let flags = |kind, flags: u32| DefaultNla::new(kind, flags.to_ne_bytes().to_vec());
            let flags = [
                flags(cta::FILTER_ORIG_FLAGS, 1),
                flags(cta::FILTER_REPLY_FLAGS, 0),
            ];
            attributes.push(nested(cta::FILTER, &flags));
        }
        Request {
            family: self.source.map_or(NetfilterProtoFamily::Unspec, family),
            message: ConntrackMessage::Other {
                message_type: kind.into(),
                attributes,
            },
        }
    }
}

fn nested<T: Nla>(kind: u16, attributes: &[T]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// The conntrack table of a network namespace.
pub struct Conntrack {
    wire: Wire,
    /// Not all kernels can delete by address.
    deletes_by_source: bool,
    /// Whether anything is deleted.
    deletes: bool,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self, ConntrackError> {
        Ok(Self {
            wire: Wire::open().map_err(ConntrackError::Open)?,
            deletes_by_source: true,
            deletes: true,
        })
    }

    /// From now on every deletion is left undone: what a safeguard is for shows without it.
    pub fn keep_everything(&mut self) {
        self.deletes = false;
    }

    /// Shows each entry to `each`, while they come: none are kept. Where the kernel resizes its table
    /// meanwhile, an entry may be shown twice or not at all.
    pub async fn for_each(
        &mut self,
        filter: Filter,
        mut each: impl FnMut(&Flow),
    ) -> Result<(), ConntrackError> {
        let mut outcome = Ok(());
        let look = |answer| match answer {
            Ok(ConntrackMessage::New(attributes)) => {
                if let Some(flow) = Flow::read(&attributes).filter(|f| filter.takes(f)) {
                    each(&flow);
                }
            }
            Ok(_) => {}
            Err(refusal) => outcome = Err(refusal),
        };
        let request = filter.request(ConntrackMessageType::Get);
        let exchanged = self.wire.exchange(vec![request], NLM_F_DUMP, look).await;
        exchanged.and(outcome).map_err(ConntrackError::Read)
    }

    /// How many new connections could not be entered since the namespace was made, on all CPUs: their packets were
    /// dropped. That is so where the other side already knows their source, that is where no port was left for it
    /// (`__nf_conntrack_confirm`), or, rarely, where two packets opened the same connection at the same time.
    pub async fn refused(&mut self) -> Result<u64, ConntrackError> {
        let mut refused = 0;
        let mut outcome = Ok(());
        let look = |answer| match answer {
            Ok(ConntrackMessage::Other { attributes, .. }) => {
                let count = attributes.iter().find(|a| a.kind() == cta::STATS_INSERT_FAILED);
                refused += count
                    .and_then(octets)
                    .map_or(0, |n| u64::from(u32::from_be_bytes(n)));
            }
            Ok(_) => {}
            Err(refusal) => outcome = Err(refusal),
        };
        let request = Request {
            family: NetfilterProtoFamily::Unspec,
            message: ConntrackMessage::Other {
                message_type: IPCTNL_MSG_CT_GET_STATS_CPU,
                attributes: Vec::new(),
            },
        };
        let exchanged = self.wire.exchange(vec![request], NLM_F_DUMP, look).await;
        exchanged.and(outcome).map_err(ConntrackError::Read)?;
        Ok(refused)
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
            let deletion = |flow: &Flow| Request {
                family: family(flow.original.source),
                message: ConntrackMessage::Delete(flow.identity()),
            };
            self.delete_all(flows.iter().map(deletion).collect()).await?;
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
        self.delete_all(vec![filter.request(ConntrackMessageType::Delete)])
            .await
    }

    /// Deletes the entries whose original direction comes from `source`: with one message where the kernel
    /// can do that, otherwise after a look through all entries of the family.
    pub async fn delete_by_source(&mut self, source: IpAddr) -> Result<(), ConntrackError> {
        let filter = Filter {
            source: Some(source),
            mark: None,
        };
        if source.is_ipv4() && self.deletes_by_source {
            let deletion = filter.request(ConntrackMessageType::Delete);
            match self.delete_all(vec![deletion]).await {
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

    async fn delete_all(&mut self, deletions: Vec<Request>) -> Result<(), ConntrackError> {
        if !self.deletes {
            return Ok(());
        }
        let mut outcome = Ok(());
        let answered = |answer: Result<_, NetlinkError>| match answer {
            Err(refusal) if refusal.errno() != Some(Errno::ENOENT) && outcome.is_ok() => {
                outcome = Err(refusal);
            }
            _ => {}
        };
        let exchanged = self.wire.exchange(deletions, NLM_F_ACK, answered).await;
        exchanged.and(outcome).map_err(ConntrackError::Delete)
    }
}

fn family(address: IpAddr) -> NetfilterProtoFamily {
    match address {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    }
}
