//! Tunnel device, FDB, neighbours, routes, ip rules, sysctls.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::interval::Interval;
use egressnat_crds::plan::{Family, Peer};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::Context;
use crate::model::{Fdb, IpRule, MacAddr, Neighbour, Net, Route, RouteKind, Sysctl, Tunnel};
use crate::owned::{OVERHEAD_V4, OVERHEAD_V6, RoutingMark, TUNNEL};

/// What the tunnel adds to a packet, in octets.
pub(super) fn overhead(underlay: IpAddr) -> u32 {
    if underlay.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    }
}

pub(super) fn compile(context: &Context<'_>) -> Net {
    let mut net = context
        .tunnel
        .as_ref()
        .map_or_else(Net::default, |(tunnel, _)| with_tunnel(context, tunnel));
    context.exit_network(&mut net);
    net
}

fn with_tunnel(context: &Context<'_>, tunnel: &Tunnel) -> Net {
    let peers = &context.plan.peers;
    Net {
        tunnel: Some(tunnel.clone()),
        fdb: peers
            .iter()
            .map(|p| Fdb {
                mac: mac(p),
                remote: p.underlay,
            })
            .collect(),
        neighbours: context.neighbours(),
        routes: context.routes(),
        rules: context.rules(),
        sysctls: context.sysctls(),
    }
}

impl Context<'_> {
    fn families(&self) -> impl Iterator<Item = Family> + use<'_> {
        super::FAMILIES
            .into_iter()
            .filter(|f| *f == Family::IPv4 || self.facts.ipv6)
    }

    fn neighbours(&self) -> BTreeSet<Neighbour> {
        let peers = self.plan.peers.iter();
        peers
            .flat_map(|p| {
                self.families().map(|f| Neighbour {
                    address: next_hop(p, f),
                    mac: mac(p),
                })
            })
            .collect()
    }

    /// Per gateway a default by the tunnel; replies by the range of the peer they belong to.
    fn routes(&self) -> BTreeSet<Route> {
        let mut routes = BTreeSet::new();
        for (node, number) in &self.gateways {
            let Some(peer) = self.peers.get(node) else {
                continue;
            };
            let table = self.numbers.table(RoutingMark::Gateway(*number));
            routes.extend(self.families().map(|f| Route {
                table,
                to: default_of(f),
                kind: RouteKind::Tunnel {
                    via: next_hop(peer, f),
                },
            }));
            // With src_valid_mark and strict rp_filter, the way back to a pod is looked up with the mark.
            routes.extend(self.own_ranges().into_iter().map(|to| Route {
                table,
                to,
                kind: RouteKind::Throw,
            }));
        }
        let table = self.numbers.table(RoutingMark::Reply);
        for peer in &self.plan.peers {
            let ranges = peer
                .ranges
                .iter()
                .filter(|r| self.families().any(|f| f == r.addr().into()));
            routes.extend(ranges.map(|to| Route {
                table,
                to: *to,
                kind: RouteKind::Tunnel {
                    via: next_hop(peer, to.addr().into()),
                },
            }));
        }
        routes.extend(self.own_in_peers_ranges().map(|ip| Route {
            table,
            to: ip.into(),
            kind: RouteKind::Throw,
        }));
        routes
    }

    /// This node's pods with addresses of a peer's ranges, as networks have them that do not go by ranges.
    fn own_in_peers_ranges(&self) -> impl Iterator<Item = IpAddr> {
        let ips = self.plan.pods.iter().flat_map(|p| p.ips.iter().copied());
        ips.filter(|ip| {
            let mut ranges = self.plan.peers.iter().flat_map(|p| &p.ranges);
            self.families().any(|f| f == (*ip).into()) && ranges.any(|r| r.contains(ip))
        })
    }

    fn rules(&self) -> BTreeSet<IpRule> {
        let gateways = self.gateways.values().map(|n| RoutingMark::Gateway(*n));
        let reply = self.serves_peers().then_some(RoutingMark::Reply);
        gateways
            .chain(reply)
            .flat_map(|mark| {
                self.families().map(move |family| IpRule {
                    family,
                    priority: self.numbers.rule_priority,
                    mark: self.numbers.mark(mark),
                    mask: self.numbers.mark_mask,
                    table: self.numbers.table(mark),
                })
            })
            .collect()
    }

    /// The cluster's ranges that hold this node's pods, and the addresses of pods outside of all.
    pub(super) fn own_ranges(&self) -> BTreeSet<IpNet> {
        let pods = self.plan.pods.iter().flat_map(|p| &p.ips);
        let mut ranges = BTreeSet::new();
        for ip in pods.filter(|ip| self.families().any(|f| f == (**ip).into())) {
            if ranges.iter().any(|r: &IpNet| r.contains(ip)) {
                continue;
            }
            match self.plan.cluster.iter().find(|r| r.contains(*ip)) {
                Some(range) => ranges.extend(subnets(range)),
                None => ranges.extend([IpNet::from(*ip)]),
            }
        }
        ranges
    }

    /// Strict rp_filter would drop all that comes out of the tunnel; the rest is what forwarding needs.
    fn sysctls(&self) -> BTreeSet<Sysctl> {
        let v4 = [("ipv4", "rp_filter", "2"), ("ipv4", "forwarding", "1")];
        let v6 = [
            ("ipv6", "disable_ipv6", "0"),
            ("ipv6", "forwarding", "1"),
            ("ipv6", "accept_ra", "0"),
        ];
        let v6 = v6.into_iter().filter(|_| self.facts.ipv6);
        v4.into_iter()
            .chain(v6)
            .map(|(family, name, value)| Sysctl {
                path: format!("{family}/conf/{TUNNEL}/{name}"),
                value: value.into(),
            })
            .collect()
    }
}

fn mac(peer: &Peer) -> MacAddr {
    MacAddr::of_underlay(peer.underlay)
}

/// The next hop to a peer. It is never resolved, its neighbour entry is permanent: an IPv4 peer's own
/// address serves for IPv4 routes, so that they need no IPv6 on the node; the rest is link-local.
fn next_hop(peer: &Peer, family: Family) -> IpAddr {
    match (peer.underlay, family) {
        (IpAddr::V4(address), Family::IPv4) => address.into(),
        _ => mac(peer).link_local().into(),
    }
}

/// Everywhere.
pub(super) fn default_of(family: Family) -> IpNet {
    match family {
        Family::IPv4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        Family::IPv6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

fn subnets(range: &Interval) -> Vec<IpNet> {
    match (range.first(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}
