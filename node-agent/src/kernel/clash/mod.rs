//! What other programs hold that we need. Found before anything is written, and said aloud.

mod firewall;
mod masquerade;
mod packet;
mod passage;
mod readings;
mod surroundings;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use egressnat_crds::plan::{Family, Hindrance};

pub use firewall::{MarkClash, Passages, drops, marks};
pub use masquerade::masqueraders;
pub use passage::{Passage, passages};
pub use readings::{Readings, ReadingsError};
pub use surroundings::{Astray, astray, surroundings};

use super::rtnl::{ForeignRoute, ForeignRule, NodeLink, Observed};
use crate::kernel::nft::MarkOf;
use crate::owned::{Numbers, TUNNEL};

/// Something in our way. `Display` says what it is and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// The tunnel's name belongs to a device of another kind.
    LinkName {
        /// Its kind.
        kind: String,
    },
    /// Another VXLAN device has our UDP port.
    TunnelPort {
        /// Its name.
        link: String,
        /// The port.
        port: u16,
        /// Its network identifier.
        vni: u32,
    },
    /// A process has our UDP port.
    Socket {
        /// Where it listens.
        address: SocketAddr,
    },
    /// A rule of another program stands at our priority.
    RulePriority(ForeignRule),
    /// A rule of another program has a use of our bits of the packet mark.
    RuleMark(ForeignRule),
    /// A rule of another program compares our bits of the packet mark with 0.
    RuleReadsMark(ForeignRule),
    /// A rule of another program leads to one of our tables.
    RuleTable(ForeignRule),
    /// A route of another program is in one of our tables.
    Route(ForeignRoute),
    /// An nft rule of another program uses our bits of a mark.
    Mark {
        /// How.
        kind: MarkClash,
        /// The rule's table, with its family.
        table: String,
        /// The rule's chain.
        chain: String,
    },
    /// Another program's rules drop what we have to pass on.
    Firewall {
        /// What they drop.
        passage: Passage,
        /// Of which family.
        family: Family,
        /// The chain's table, with its family.
        table: String,
        /// The base chain.
        chain: String,
    },
    /// Rules that cannot be read.
    Legacy {
        /// Of which family.
        family: Family,
        /// Their table.
        table: String,
    },
    /// BPF programs see packets that should keep the source that we give them, or that should come to our rules.
    BpfProgram {
        /// The link that they are on.
        link: String,
        /// They see what leaves by it; otherwise what comes in.
        egress: bool,
        /// Their names.
        programs: Vec<String>,
    },
    /// A network plugin whose BPF programs are not to be seen.
    BpfOwner {
        /// Its name.
        owner: &'static str,
        /// The device by which it is known.
        device: &'static str,
    },
    /// Selected pods' packets pass this node's network stack by.
    PodsBypass {
        /// How many pods.
        count: usize,
        /// One of them.
        example: Astray,
    },
    /// A strict reverse path filter drops what a peer sends by the tunnel.
    ReversePath {
        /// The link under the tunnel.
        link: String,
        /// The peer, to which another link leads.
        peer: IpAddr,
    },
    /// The kernel forwards no IPv4 packets that come in by a link of the gateway's.
    LinkForwardsNot {
        /// The link.
        link: String,
    },
    /// The kernel has no VXLAN.
    NoVxlan,
    /// The kernel forwards no packets of a family.
    NoForwarding(Family),
}

impl Clash {
    /// Whether nothing may be written while it is there. Otherwise some traffic suffers.
    pub fn blocks(&self) -> bool {
        match self {
            Self::LinkName { .. }
            | Self::TunnelPort { .. }
            | Self::Socket { .. }
            | Self::RulePriority(_)
            | Self::RuleMark(_)
            | Self::RuleTable(_)
            | Self::Route(_)
            | Self::NoVxlan => true,
            Self::Mark { kind, .. } => matches!(kind, MarkClash::Sets(..) | MarkClash::Id(_)),
            Self::RuleReadsMark(_)
            | Self::Firewall { .. }
            | Self::Legacy { .. }
            | Self::BpfProgram { .. }
            | Self::BpfOwner { .. }
            | Self::PodsBypass { .. }
            | Self::ReversePath { .. }
            | Self::LinkForwardsNot { .. }
            | Self::NoForwarding(_) => false,
        }
    }

    /// Whether it keeps what is in force from being kept so. The rest keeps a node from beginning; one that serves pods goes
    /// on, and says so: to stop would leave the next pods without their policies, and ours in the kernel with nobody to
    /// repair it.
    pub fn stops(&self) -> bool {
        let by_rules = matches!(
            self,
            Self::RulePriority(_)
                | Self::RuleMark(_)
                | Self::RuleTable(_)
                | Self::Route(_)
                | Self::Mark { .. }
        );
        self.blocks() && !by_rules
    }

    /// One word for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::LinkName { .. } => "ClashLinkName",
            Self::TunnelPort { .. } => "ClashTunnelPort",
            Self::Socket { .. } => "ClashSocket",
            Self::RulePriority(_) => "ClashRulePriority",
            Self::RuleMark(_) => "ClashRuleMark",
            Self::RuleReadsMark(_) => "ClashRuleReadsMark",
            Self::RuleTable(_) => "ClashRuleTable",
            Self::Route(_) => "ClashRoute",
            Self::Mark { kind, .. } => match kind {
                MarkClash::Sets(..) => "ClashMark",
                MarkClash::Id(_) => "ClashPolicyId",
                MarkClash::Overwrites(..) => "MarkOverwritten",
                MarkClash::Reads(..) => "MarkRead",
            },
            Self::Firewall { .. } => "FirewallDrops",
            Self::Legacy { .. } => "LegacyIptables",
            Self::BpfProgram { .. } | Self::BpfOwner { .. } => "BpfProgram",
            Self::PodsBypass { .. } => "PodsBypass",
            Self::ReversePath { .. } => "ReversePathFilter",
            Self::NoVxlan => "NoVxlan",
            Self::LinkForwardsNot { .. } | Self::NoForwarding(_) => "NoForwarding",
        }
    }
}

impl From<&Clash> for Hindrance {
    /// As the plan's status has it.
    fn from(clash: &Clash) -> Self {
        Self {
            reason: clash.category().into(),
            message: clash.to_string(),
        }
    }
}

/// All that is in our way. `families` are those that the plan has use of.
pub fn check(observed: &Observed, readings: &Readings, numbers: &Numbers, families: &[Family]) -> Vec<Clash> {
    let mut clashes = links(observed, numbers);
    clashes.extend(sockets(observed, readings, numbers));
    clashes.extend(observed.foreign_rules.iter().filter_map(|r| rule(r, numbers)));
    clashes.extend(observed.foreign_routes.iter().cloned().map(Clash::Route));
    let legacy = readings.legacy.iter().cloned();
    clashes.extend(legacy.map(|(family, table)| Clash::Legacy { family, table }));
    clashes.extend((!readings.vxlan).then_some(Clash::NoVxlan));
    let forwards = |family: &&Family| readings.forwarding.contains(family);
    let still = families.iter().filter(|f| !forwards(f)).copied();
    clashes.extend(still.map(Clash::NoForwarding));
    clashes
}

fn links(observed: &Observed, numbers: &Numbers) -> Vec<Clash> {
    let named = observed.tunnel_link().filter(|l| l.vxlan.is_none());
    let mut clashes: Vec<_> = named
        .map(|l| Clash::LinkName { kind: kind(l) })
        .into_iter()
        .collect();
    for link in observed.links.iter().filter(|l| l.name != TUNNEL) {
        if let Some(vxlan) = link.vxlan.as_ref().filter(|v| v.port == numbers.port) {
            clashes.push(Clash::TunnelPort {
                link: link.name.clone(),
                port: vxlan.port,
                vni: vxlan.vni,
            });
        }
    }
    clashes
}

fn kind(link: &NodeLink) -> String {
    match link.kind.as_str() {
        "" => "physical device".into(),
        kind => kind.into(),
    }
}

/// A VXLAN device that is up holds a socket of the kernel's own, which looks like any other. Nobody else
/// can have bound the port beside it; and another's device is a clash by itself.
fn sockets(observed: &Observed, readings: &Readings, numbers: &Numbers) -> Vec<Clash> {
    let held_by_device = observed
        .links
        .iter()
        .filter(|l| l.up)
        .any(|l| l.vxlan.as_ref().is_some_and(|v| v.port == numbers.port));
    let sockets = readings.udp.iter().filter(|s| s.port() == numbers.port);
    sockets
        .filter(|_| !held_by_device)
        .map(|address| Clash::Socket { address: *address })
        .collect()
}

/// A rule of another program is harmful where it takes our packets or its packets are taken for ours: at our
/// own priority, where it has a mark with our bits set, or where it comes before ours and takes all that
/// lacks its mark. Where its mark has our bits unset, its packets are not ours and ours not its; only a
/// packet that both mark is then lost to it.
fn rule(rule: &ForeignRule, numbers: &Numbers) -> Option<Clash> {
    let overlap = rule.mask & numbers.mark_mask;
    let takes_ours = rule.inverted && rule.priority < numbers.rule_priority;
    if rule.priority == numbers.rule_priority {
        Some(Clash::RulePriority(rule.clone()))
    } else if overlap == 0 {
        let ours = numbers.owns_table(rule.table);
        ours.then(|| Clash::RuleTable(rule.clone()))
    } else if rule.mark & overlap != 0 || takes_ours {
        Some(Clash::RuleMark(rule.clone()))
    } else {
        Some(Clash::RuleReadsMark(rule.clone()))
    }
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkName { kind } => write!(
                f,
                "a link named {TUNNEL} exists and is no VXLAN device ({kind}): rename or remove it"
            ),
            Self::TunnelPort { link, port, vni } => write!(
                f,
                "VXLAN device {link} (VNI {vni}) uses UDP port {port}: give the tunnel another port"
            ),
            Self::Socket { address } => write!(
                f,
                "a process listens on UDP {address} (`ss -ulpn` tells which): stop it, or give the tunnel \
                 another port"
            ),
            Self::RulePriority(rule) => write!(
                f,
                "ip rule `{}` of another program stands at our priority: give ours another priority",
                Text(rule)
            ),
            Self::RuleMark(rule) => write!(
                f,
                "ip rule `{}` of another program uses bits of our packet mark: give ours another mask",
                Text(rule)
            ),
            Self::RuleReadsMark(rule) => write!(
                f,
                "ip rule `{}` of another program compares bits of our packet mark: it will miss packets that \
                 both mark; give it a mask, or ours another one",
                Text(rule)
            ),
            Self::RuleTable(rule) => write!(
                f,
                "ip rule `{}` of another program leads to a table of ours: give ours another table base",
                Text(rule)
            ),
            Self::Route(ForeignRoute { table, to, protocol }) => write!(
                f,
                "a route to {to} of another program (protocol {protocol}) is in our table {table}: remove it, \
                 or give ours another table base"
            ),
            Self::Mark { kind, table, chain } => write!(f, "a rule in chain {chain} of table {table} {kind}"),
            Self::Firewall {
                passage,
                family,
                table,
                chain,
            } => write!(
                f,
                "chain {chain} of table {table} drops {passage} ({family:?}): accept them there, by the pods' \
                 ranges or by device {TUNNEL}"
            ),
            Self::Legacy { family, table } => write!(
                f,
                "iptables-legacy has a table {table} for {family:?}, whose rules cannot be seen: make sure that they \
                 neither drop nor mark what policies send, or move them to iptables-nft"
            ),
            Self::BpfProgram {
                link,
                egress,
                programs,
            } => {
                let (way, programs) = (
                    if *egress {
                        "on the way out"
                    } else {
                        "on the way in"
                    },
                    programs.join(", "),
                );
                write!(
                    f,
                    "BPF programs are {way} by {link} ({programs}): where they translate sources or forward by \
                     themselves, packets leave with another address than their policy's; switch off BPF masquerade \
                     and BPF host routing"
                )
            }
            Self::BpfOwner { owner, device } => write!(
                f,
                "{owner} is on this node (device {device}), whose BPF programs cannot be seen: switch off its BPF \
                 masquerade and BPF host routing"
            ),
            Self::PodsBypass { count, example } => {
                let Astray { pod, link } = example;
                let by = link
                    .as_ref()
                    .map_or("nothing".into(), |link| format!("the node's own {link}"));
                write!(
                    f,
                    "{count} selected pods' addresses are not behind this node: {pod} is reached by {by}. What such \
                     pods send (macvlan, ipvlan, SR-IOV) passes this node by, and leaves with their own address"
                )
            }
            Self::ReversePath { link, peer } => write!(
                f,
                "{link} filters by strict reverse path, and another link leads to peer {peer}: what it sends by the \
                 tunnel is dropped; set net.ipv4.conf.{link}.rp_filter=2"
            ),
            Self::LinkForwardsNot { link } => write!(
                f,
                "the node forwards no IPv4 packets that come in by {link}: set net.ipv4.conf.{link}.forwarding=1"
            ),
            Self::NoVxlan => write!(f, "the kernel has no VXLAN: load or install the module vxlan"),
            Self::NoForwarding(Family::IPv4) => {
                write!(f, "the node forwards no IPv4 packets: set net.ipv4.ip_forward=1")
            }
            Self::NoForwarding(Family::IPv6) => {
                write!(
                    f,
                    "the node forwards no IPv6 packets: set net.ipv6.conf.all.forwarding=1"
                )
            }
        }
    }
}

impl fmt::Display for MarkClash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |of: &MarkOf| match of {
            MarkOf::Packet => "packet mark: give ours another mask (chart value routing.markMask), or it",
            MarkOf::Connection => "connection mark (0x3fff0000): give it another mask",
        };
        match self {
            Self::Sets(of, bits) => write!(f, "sets bits {bits:#x} of our {}", mark(of)),
            Self::Id(bits) => write!(
                f,
                "writes bits {bits:#x} of the mark with which packets enter the tunnel, where the policy's id is: \
                 give it a mask without them, or except device {TUNNEL}"
            ),
            Self::Overwrites(of, bits) => {
                write!(f, "may overwrite bits {bits:#x} of our {}", mark(of))
            }
            Self::Reads(of, bits) => write!(
                f,
                "looks for bits {bits:#x} of our {}: it may take our packets for its own",
                mark(of)
            ),
        }
    }
}

/// A rule as `ip rule` prints it.
struct Text<'a>(&'a ForeignRule);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        let family = match rule.family {
            Family::IPv4 => "-4",
            Family::IPv6 => "-6",
        };
        write!(f, "{family} {}:", rule.priority)?;
        if rule.inverted {
            write!(f, " not")?;
        }
        if rule.mask != 0 {
            write!(f, " fwmark {:#x}/{:#x}", rule.mark, rule.mask)?;
        }
        match rule.table {
            0 => Ok(()),
            table => write!(f, " lookup {table}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(priority: u32, mark: u32, mask: u32, inverted: bool) -> ForeignRule {
        ForeignRule {
            family: Family::IPv4,
            priority,
            mark,
            mask,
            inverted,
            table: 52,
        }
    }

    /// Rules that others are known to make, as COEXISTENCE has them.
    #[test]
    fn rules_are_judged_by_what_they_do_to_our_packets() {
        let numbers = Numbers::default();
        let judged = |priority, mark, mask, inverted| {
            rule(&foreign(priority, mark, mask, inverted), &numbers).map(|c| c.category())
        };
        let (priority, mark, reads) = (
            Some("ClashRulePriority"),
            Some("ClashRuleMark"),
            Some("ClashRuleReadsMark"),
        );
        assert_eq!(judged(5210, 0x80000, 0xff0000, false), None, "Tailscale");
        assert_eq!(judged(1024, 0x80, 0x80, false), None, "AWS");
        assert_eq!(judged(99, 0x2600_0001, 0xff00_0000, false), mark, "egressgateway");
        assert_eq!(judged(6000, 0x3f0, 0xffff_ffff, false), reads, "OVN-Kubernetes");
        assert_eq!(judged(32764, 0xca6c, 0xffff_ffff, true), reads, "wg-quick");
        assert_eq!(judged(100, 0xca6c, 0xffff_ffff, true), mark, "wg-quick, first");
        assert_eq!(judged(770, 0, 0, false), priority);
        assert_eq!(judged(770, 0x100_0000, 0xff00_0000, false), priority);
    }

    #[test]
    fn a_clash_says_what_to_do() {
        let clash = Clash::RuleMark(foreign(99, 0x2600_0001, 0xff00_0000, true));
        assert_eq!(
            clash.to_string(),
            "ip rule `-4 99: not fwmark 0x26000001/0xff000000 lookup 52` of another program uses bits of our \
             packet mark: give ours another mask"
        );
        assert!(clash.blocks());
        assert!(!Clash::NoForwarding(Family::IPv6).blocks());
    }
}
