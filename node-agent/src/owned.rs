//! Everything in the kernel that is egressnat's, with its name or number and how a fresh process knows it
//! for its own.
//!
//! | thing | name or number | recognised by |
//! |---|---|---|
//! | nft table | `inet egressnat` | its name; nothing else is looked into |
//! | link | `egressnat0` | its name and kind `vxlan`; another kind is a clash |
//! | its IPv4 address | 169.254.77.0/32, scope host | the link |
//! | FDB and neighbour entries | on `egressnat0` | the link |
//! | ip rules | priority 770 | priority, and a fwmark under our mask; anything else at 770 is a clash |
//! | routes | tables 7701 to 7763 | the table |
//! | sysctls | `conf/egressnat0/*` | the link |
//! | sysctls | `conf/*/rp_filter` of links that egress addresses leave by | map `rp_filter` of the nft table: index of the link, and the value to put back |
//! | conntrack entries | connection mark under `0x3fff0000` | the mask; entries are only ever deleted |

use std::net::Ipv4Addr;

/// Name of the nft table, family `inet`.
pub const TABLE: &str = "egressnat";

/// Name of the VXLAN device.
pub const TUNNEL: &str = "egressnat0";

/// The tunnel's own IPv4 address, the same on every node, never seen on a wire: on a device without any, the
/// kernel's loose reverse path filter drops like the strict one (`__fib_validate_source`).
pub const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 0);

/// Priority of our `prerouting` and `forward`: right after DNAT at -100.
pub const FILTER_PRIORITY: i32 = -90;

/// Name of the map that remembers the `rp_filter` of each link that we have made loose, by the link's index. No
/// rule looks into it: it is there for the process that puts the values back, and goes with all else that is ours.
pub const RP_FILTER: &str = "rp_filter";

/// Name of the map from a policy's id to the chain that translates to some ports alone, [`ports_chain`].
pub const PORTS: &str = "ports";

/// Name of the chain that stands before a tunnel device that comes up, until the rest of the table knows it.
pub const GUARD: &str = "guard";

/// Names of the sets of what is masqueraded, each followed by the digit of its family: the sources, and the
/// destinations to which they keep their address.
pub const MASQUERADE_SOURCES: &str = "masquerade";
/// See [`MASQUERADE_SOURCES`].
pub const MASQUERADE_EXCEPT: &str = "masquerade_except";

/// Names of the sets of connections that a policy has given up with their pod, each followed by the digit of its
/// family: the pods, and the servers.
pub const RELEASED: &str = "released";
/// See [`RELEASED`].
pub const RELEASED_TO: &str = "released_to";

/// Name of the set of links behind each of which is one selected pod and nothing else, by index.
pub const POD_LINKS: &str = "pod_links";

/// What VXLAN adds to a packet on an IPv4 underlay: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 octets.
pub const OVERHEAD_V4: u32 = 50;

/// What VXLAN adds to a packet on an IPv6 underlay: inner Ethernet 14, VXLAN 8, UDP 8, IPv6 40 octets.
pub const OVERHEAD_V6: u32 = 70;

/// Where the policy's id stands in the connection mark.
pub const CT_MARK_MASK: u32 = 0x3fff_0000;

/// How far the policy's id is shifted in the connection mark.
pub const CT_MARK_SHIFT: u32 = 16;

/// The bits of a packet mark that a VXLAN header with group policy carries.
pub const GBP_MASK: u32 = 0xffff;

/// The bits of the tunnel's group policy that hold a policy's id.
pub const GBP_ID_MASK: u32 = 0x3fff;

/// The numbers that an administrator may set where others on the node use the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The six neighbouring bits of the packet mark that are ours.
    pub mark_mask: u32,
    /// Priority of our ip rules.
    pub rule_priority: u32,
    /// Our route tables are this number plus 1 to 0x3f.
    pub table_base: u32,
    /// UDP port of the tunnel.
    pub port: u16,
    /// VXLAN network identifier of the tunnel, 24 bits.
    pub vni: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            mark_mask: 0x3f00_0000,
            rule_priority: 770,
            table_base: 7700,
            port: 5770,
            vni: 770_770,
        }
    }
}

/// What a packet's routing mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoutingMark {
    /// By the tunnel to the gateway of this number, 1 to [`RoutingMark::MAX_NUMBER`]. Numbers are this node's own.
    Gateway(u8),
    /// Out by this node, which is the gateway, and by no other link than that of this number. Gateways and links
    /// share the numbers.
    Exit(u8),
    /// Out by this node, which is the gateway or takes its place, as its main table says.
    Local,
    /// A reply: back by the tunnel to the node of the pod.
    Reply,
}

impl RoutingMark {
    /// How many gateways and exits one node can use at a time.
    pub const MAX_NUMBER: u8 = 0x3d;

    /// The six bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::Gateway(n) | Self::Exit(n) => n,
            Self::Local => 0x3e,
            Self::Reply => 0x3f,
        }
    }
}

impl Numbers {
    /// The packet mark's bits of `mark`, in place.
    pub fn mark(&self, mark: RoutingMark) -> u32 {
        (u32::from(mark.bits()) << self.mark_mask.trailing_zeros()) & self.mark_mask
    }

    /// The route table of `mark`.
    pub fn table(&self, mark: RoutingMark) -> u32 {
        self.table_base + u32::from(mark.bits())
    }

    /// The number of the gateway or exit whose table this is.
    pub fn number_of_table(&self, table: u32) -> Option<u8> {
        let number = u8::try_from(table.checked_sub(self.table_base)?).ok()?;
        (1..=RoutingMark::MAX_NUMBER).contains(&number).then_some(number)
    }

    /// Whether a route table is ours.
    pub fn owns_table(&self, table: u32) -> bool {
        (self.table_base + 1..=self.table_base + 0x3f).contains(&table)
    }
}

/// A policy's id as it stands in the connection mark.
pub fn ct_mark(id: u16) -> u32 {
    (u32::from(id) << CT_MARK_SHIFT) & CT_MARK_MASK
}

/// Name of the chain that translates a policy's packets to some ports alone.
pub fn ports_chain(id: u16) -> String {
    format!("ports_{id}")
}

/// Why a packet was dropped: a label of the agent's metric, and a named nft counter where a rule drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// A selected pod's packet whose policy has no gateway.
    NoGateway,
    /// A policy's packet at its gateway, which has no address for it.
    NoAddress,
    /// A selected pod's packet that conntrack cannot place: no NAT would touch it.
    Unplaced,
    /// A selected pod's packet of a connection that is older than the policy that applies to it.
    Older,
    /// A packet of a connection that a policy gave up with its pod: no NAT would touch it, or its server would take it
    /// for a stranger's.
    Released,
    /// With a source that the node's routes do not reach by the link that it came in by: a selected pod's address from
    /// elsewhere, or another address from a selected pod.
    Forged,
    /// A policy's packet on its way out by another door than its gateway's.
    WrongDoor,
    /// To the tunnel's port, from an address that is no peer's.
    NotPeer,
    /// Out of the tunnel, with an inner source that is not the sending peer's.
    Spoofed,
    /// Out of the tunnel, with an id that this node is no gateway for.
    UnknownId,
    /// Out of the tunnel, of a connection that another policy has decided.
    Stale,
    /// Out of the tunnel, a reply to no connection of a policy's.
    StrayReply,
    /// A policy's packet at its gateway, for whose connection no source port is left. Conntrack drops it, after the
    /// last rule: it has no nft counter, and is counted by conntrack's statistics.
    PortsExhausted,
}

impl Drop {
    /// Every reason.
    pub const ALL: [Drop; 13] = [
        Drop::NoGateway,
        Drop::NoAddress,
        Drop::Unplaced,
        Drop::Older,
        Drop::Released,
        Drop::Forged,
        Drop::WrongDoor,
        Drop::NotPeer,
        Drop::Spoofed,
        Drop::UnknownId,
        Drop::Stale,
        Drop::StrayReply,
        Drop::PortsExhausted,
    ];

    /// Those for which there is a rule.
    pub fn by_rule() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|reason| *reason != Self::PortsExhausted)
    }

    /// Name of the nft counter, and of the metric's label with `drop_` before it.
    pub fn counter(self) -> &'static str {
        match self {
            Self::NoGateway => "drop_no_gateway",
            Self::NoAddress => "drop_no_address",
            Self::Unplaced => "drop_unplaced",
            Self::Older => "drop_older",
            Self::Released => "drop_released",
            Self::Forged => "drop_forged",
            Self::WrongDoor => "drop_wrong_door",
            Self::NotPeer => "drop_not_peer",
            Self::Spoofed => "drop_spoofed",
            Self::UnknownId => "drop_unknown_id",
            Self::Stale => "drop_stale",
            Self::StrayReply => "drop_stray_reply",
            Self::PortsExhausted => "drop_ports_exhausted",
        }
    }
}
