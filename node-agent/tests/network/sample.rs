//! All that a node's network holds for a plan, made by hand.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_agent::diff::NetStep;
use egressnat_agent::diff::net::diff;
use egressnat_agent::kernel::rtnl::{Observed, Rtnl};
use egressnat_agent::model::{Fdb, IpRule, MacAddr, Neighbour, Net, Route, RouteKind, Sysctl, Tunnel};
use egressnat_agent::owned::{Numbers, RoutingMark};
use egressnat_crds::plan::Family;

/// A node's underlay address of each family.
pub const UNDERLAYS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Peer number `n` of a node with the underlay address `local`.
pub fn peer(local: IpAddr, n: u16) -> IpAddr {
    let [a, b] = n.to_be_bytes();
    match local {
        IpAddr::V4(_) => IpAddr::from([198, 18, a, b]),
        IpAddr::V6(_) => format!("2001:db8:1::{n:x}").parse().unwrap(),
    }
}

pub fn next_hop(peer: IpAddr, family: Family) -> IpAddr {
    match (peer, family) {
        (IpAddr::V4(_), Family::IPv4) => peer,
        _ => MacAddr::of_underlay(peer).link_local().into(),
    }
}

pub fn route(table: u32, to: &str, kind: RouteKind) -> Route {
    let to = to.parse().unwrap();
    Route { table, to, kind }
}

/// The number of the sample's exit.
pub const EXIT: u8 = 60;

/// An exit by the link under the tunnel: every kind of route that one can have, in both families.
fn exit(net: &Net) -> [Route; 8] {
    let link = &net.tunnel.as_ref().unwrap().underlay;
    let by = |via: Option<&str>| RouteKind::Link {
        link: link.clone(),
        via: via.map(|via| via.parse().unwrap()),
    };
    let table = Numbers::default().table(RoutingMark::Exit(EXIT));
    [
        route(table, "0.0.0.0/0", RouteKind::Unreachable),
        route(table, "10.244.0.0/16", RouteKind::Throw),
        route(table, "192.0.2.0/24", by(None)),
        route(table, "198.51.100.0/24", by(Some("192.0.2.77"))),
        route(table, "203.0.113.0/24", by(Some("fe80::77"))),
        route(table, "::/0", by(Some("fe80::77"))),
        route(table, "2001:db8::/64", by(None)),
        route(table, "2001:db8:9::/48", RouteKind::Unreachable),
    ]
}

/// All that a node with so many gateways and peers has.
pub fn desired(tunnel: Tunnel, peers: u16) -> Net {
    let numbers = Numbers::default();
    let local = tunnel.local;
    let mut net = Net {
        tunnel: Some(tunnel),
        ..Net::default()
    };
    let sysctl = |path: &str, value: &str| Sysctl {
        path: path.into(),
        value: value.into(),
    };
    net.sysctls.insert(sysctl("ipv4/conf/egressnat0/rp_filter", "2"));
    net.sysctls.insert(sysctl("ipv6/conf/egressnat0/accept_ra", "0"));
    net.routes.extend(exit(&net));
    for n in 1..=peers {
        let remote = peer(local, n);
        let mac = MacAddr::of_underlay(remote);
        net.fdb.insert(Fdb { mac, remote });
        let mark = RoutingMark::Gateway(u8::try_from(n).unwrap());
        let [replies, table] = [RoutingMark::Reply, mark].map(|m| numbers.table(m));
        let families = [
            (
                Family::IPv4,
                "0.0.0.0/0",
                "10.244.0.0/16",
                format!("10.245.{n}.0/24"),
            ),
            (Family::IPv6, "::/0", "fd00:1::/48", format!("fd00:2:{n}::/64")),
        ];
        for (family, any, own, theirs) in families {
            let via = next_hop(remote, family);
            net.neighbours.insert(Neighbour { address: via, mac });
            net.routes.insert(route(table, any, RouteKind::Tunnel { via }));
            net.routes.insert(route(table, own, RouteKind::Throw));
            net.routes
                .insert(route(replies, &theirs, RouteKind::Tunnel { via }));
            net.rules.insert(IpRule {
                family,
                priority: numbers.rule_priority,
                mark: numbers.mark(mark),
                mask: numbers.mark_mask,
                table,
            });
        }
    }
    net
}

pub async fn observe(rtnl: &mut Rtnl, sysctls: &BTreeSet<Sysctl>) -> Observed {
    let mut observed = rtnl.observe().await.unwrap();
    observed.net.sysctls = rtnl.sysctls().observe(sysctls).unwrap();
    observed
}

/// Makes it so. Returns the steps that it took.
pub async fn reach(rtnl: &mut Rtnl, desired: &Net) -> Vec<NetStep> {
    let mut observed = observe(rtnl, &desired.sysctls).await;
    if !observed.strays.is_empty() {
        rtnl.remove_strays(&observed.strays).await.unwrap();
        observed = observe(rtnl, &desired.sysctls).await;
    }
    let changes = diff(desired, &observed.net);
    let steps: Vec<_> = changes.before.into_iter().chain(changes.after).collect();
    rtnl.apply(&steps).await.unwrap();
    steps
}
