//! Tells that somebody has changed something that concerns us.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_proto::{NetlinkCodec, NetlinkFramed};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, TokioSocket};
use rtnetlink::MulticastGroup;
use tokio::time::{Instant, timeout_at};

use super::observed::{NodeAddress, NodeLink, NodeRoute};
use super::{link, route};
use crate::kernel::netlink::{self, NetlinkError};
use crate::owned::{Numbers, TUNNEL};

const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Tc,
];

/// Changes come in bursts: a link brings its addresses, they their routes.
const QUIET: Duration = Duration::from_millis(20);

/// A stream of changes without end must not keep them from being reported.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// Room in the socket for what comes while the agent works. What overflows is not lost: it is reported as a
/// change.
const SOCKET_BUFFER: libc::c_int = 1024 * 1024;

/// Why nothing more will be told.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen for changes of the node's network: {0}")]
pub struct MonitorError(#[from] io::Error);

/// Listens for changes of the node's network. Our own are told as well.
pub struct Monitor {
    /// Not a connection of rtnetlink, whose task reads on while nobody listens and keeps it all: here what
    /// waits is bounded by the socket's buffer, and news and the links asked for stay in order.
    frames: NetlinkFramed<RouteNetlinkMessage, TokioSocket, NetlinkCodec>,
    interest: Interest,
    /// A change that nobody has been told of: when it came, and when the last one did.
    pending: Option<(Instant, Instant)>,
}

impl Monitor {
    /// Listens in the calling thread's network namespace, from now on. Needs a tokio runtime.
    pub fn open(numbers: Numbers) -> Result<Self, MonitorError> {
        let mut socket = netlink::open(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.set_rx_buf_sz(SOCKET_BUFFER)?;
        for group in GROUPS {
            inner.add_membership(group as u32)?;
        }
        let monitor = Self {
            frames: NetlinkFramed::new(socket),
            interest: Interest::new(numbers),
            pending: None,
        };
        monitor.ask_for_links()?;
        Ok(monitor)
    }

    /// Waits for a change that concerns us, and for the burst that it came in to end. A tunnel that is there
    /// from the beginning counts as one. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> Result<(), MonitorError> {
        loop {
            let concerns = match self.pending {
                None => self.receive().await?,
                Some((first, last)) => {
                    let until = (last + QUIET).min(first + LONGEST_WAIT);
                    match timeout_at(until, self.receive()).await {
                        Ok(concerns) => concerns?,
                        Err(_) => {
                            self.pending = None;
                            return Ok(());
                        }
                    }
                }
            };
            if concerns {
                let now = Instant::now();
                let first = self.pending.map_or(now, |(first, _)| first);
                self.pending = Some((first, now));
            }
            if self
                .pending
                .is_some_and(|(first, _)| first.elapsed() >= LONGEST_WAIT)
            {
                self.pending = None;
                return Ok(());
            }
        }
    }

    /// Whether what has just come concerns us. Without a point at which it could be dropped between the
    /// taking of a message and the judgement.
    async fn receive(&mut self) -> io::Result<bool> {
        let message = self.frames.next().await;
        let (message, _) = message.ok_or_else(|| io::Error::other(NetlinkError::Closed))?;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => Ok(self.interest.concerns(message)),
            // Messages were lost, whatever they said.
            NetlinkPayload::Overrun(_) => {
                self.ask_for_links()?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Which links' doings concern us from now on, by index. `uplinks` go up and down: the kernel takes IPv4 routes
    /// away with a link and says nothing of them. Of `exits`, their routes in table main are told as well.
    pub fn watch(&mut self, uplinks: BTreeSet<u32>, exits: BTreeSet<u32>) {
        self.interest.uplinks = uplinks;
        self.interest.exits = exits;
    }

    /// Of which links it concerns us that they go, by index.
    pub fn watch_pods(&mut self, links: BTreeSet<u32>) {
        self.interest.pods = links;
    }

    /// The links as they are come as news, so that later ones can be told from what was.
    fn ask_for_links(&self) -> io::Result<()> {
        let mut request = NetlinkMessage::from(link::get_all());
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.finalize();
        let mut octets = vec![0; request.buffer_len()];
        request.serialize(&mut octets);
        self.frames.get_ref().socket_ref().send(&octets, 0).map(drop)
    }
}

/// Which changes concern us. Pods come and go all the time; their links do not, but for those that are waited for.
struct Interest {
    numbers: Numbers,
    tunnel: Option<u32>,
    /// The links heard of.
    links: BTreeMap<u32, Known>,
    /// See [`Monitor::watch`].
    uplinks: BTreeSet<u32>,
    exits: BTreeSet<u32>,
    /// See [`Monitor::watch_pods`].
    pods: BTreeSet<u32>,
}

/// What concerns us of a link.
struct Known {
    name: String,
    altnames: Vec<String>,
    mtu: u32,
    up: bool,
    nodes_end: bool,
}

impl Interest {
    fn new(numbers: Numbers) -> Self {
        Self {
            numbers,
            tunnel: None,
            links: BTreeMap::new(),
            uplinks: BTreeSet::new(),
            exits: BTreeSet::new(),
            pods: BTreeSet::new(),
        }
    }

    fn concerns(&mut self, message: RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(m) => self.link(NodeLink::read(m)),
            RouteNetlinkMessage::DelLink(m) => {
                let link = NodeLink::read(m);
                self.links.remove(&link.index);
                link.name == TUNNEL || self.pods.contains(&link.index)
            }
            RouteNetlinkMessage::NewAddress(m) | RouteNetlinkMessage::DelAddress(m) => {
                m.header.scope != AddressScope::Link
                    && !NodeAddress::read(&m).is_some_and(|address| self.is_pods_gateway(&address))
            }
            RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => {
                let own = |route: &NodeRoute| route.to.prefix_len() == 0 || self.exits.contains(&route.link);
                self.numbers.owns_table(route::table(&m)) || route::of_node(&m).iter().any(own)
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => true,
            RouteNetlinkMessage::NewNeighbour(m) | RouteNetlinkMessage::DelNeighbour(m) => {
                self.tunnel == Some(m.header.ifindex)
            }
            RouteNetlinkMessage::NewTrafficFilter(m)
            | RouteNetlinkMessage::DelTrafficFilter(m)
            | RouteNetlinkMessage::DelQueueDiscipline(m) => {
                u32::try_from(m.header.index).is_ok_and(|index| self.uplinks.contains(&index))
            }
            _ => false,
        }
    }

    /// Some CNIs give the node's end of each pod's pair the address of the pod's gateway: no news with every pod.
    fn is_pods_gateway(&self, address: &NodeAddress) -> bool {
        let link = self.links.get(&address.index);
        link.is_some_and(|link| link.nodes_end)
            && address.is_single()
            && !self.uplinks.contains(&address.index)
    }

    /// The tunnel, whatever has changed; others when their names or MTU have, uplinks when they go up or down. A link that is new is none's
    /// yet: what makes it matter, an address, is told as well.
    fn link(&mut self, link: NodeLink) -> bool {
        let ours = link.name == TUNNEL;
        if ours {
            self.tunnel = Some(link.index);
        }
        let uplink = self.uplinks.contains(&link.index);
        let new = Known {
            nodes_end: link.is_nodes_end(),
            name: link.name,
            altnames: link.altnames,
            mtu: link.mtu,
            up: link.up,
        };
        let told = self.links.get(&link.index).is_some_and(|old| {
            let Known {
                name,
                altnames,
                mtu,
                up,
                nodes_end: _,
            } = old;
            (name, altnames, mtu) != (&new.name, &new.altnames, &new.mtu) || uplink && *up != new.up
        });
        self.links.insert(link.index, new);
        ours || told
    }
}
