//! What one look at the node's network says to the compiler and to the operator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::plan::{EgressPlanSpec, Family, NodeInterface};

use super::observe_exits;
use super::rtnl::{NodeAddress, NodeLink, Observed};
use super::sysctl::{SysctlError, Sysctls};
use crate::diff::ObservedTable;
use crate::facts::{Facts, Underlay};
use crate::model::{MacAddr, Net, RouteKind};
use crate::owned::{Numbers, TUNNEL};

/// kube-proxy's IPVS mode keeps the addresses of all Services on it. They are no node's.
const IPVS: &str = "kube-ipvs0";

/// What compiling `plan` needs to know. `table` is ours, as the kernel shows it.
pub fn observe_facts(
    observed: &Observed,
    table: Option<&ObservedTable>,
    sysctls: &Sysctls,
    plan: &EgressPlanSpec,
    numbers: &Numbers,
) -> Result<Facts, SysctlError> {
    let usable = observed.addresses.iter().filter(|a| !a.unusable);
    Ok(Facts {
        underlay: plan.underlay.and_then(|address| underlay_link(observed, address)),
        tunnel: observed
            .tunnel_link()
            .filter(|l| l.vxlan.is_some())
            .map(Into::into),
        addresses: usable.map(|a| a.address).collect(),
        ipv6: sysctls.ipv6()?,
        gateway_numbers: gateway_numbers(&observed.net, numbers),
        exits: observe_exits::exits(observed, sysctls, plan, table)?,
        masqueraders: Vec::new(),
        released: None,
        links: BTreeSet::new(),
        sources_unchecked: false,
        exit_numbers: observe_exits::exit_numbers(&observed.net, numbers),
    })
}

/// The node's interfaces with their global addresses, for the plan's status.
///
/// The preferred address of each family stands first: primary before secondary, lasting before temporary.
/// A deprecated address is there only where somebody put it, as keepalived does with virtual addresses,
/// and last. An interface with alternative names is listed under each, so that a policy may use any. Not
/// listed are links that hold no address of the node's own: those of pods, the tunnel, and that of
/// kube-proxy's IPVS.
pub fn interfaces(observed: &Observed) -> Vec<NodeInterface> {
    let defaults = [Family::IPv4, Family::IPv6].map(|f| (f, observed.default_links(f)));
    let own = |link: &&NodeLink| link.name != TUNNEL && link.name != IPVS;
    let mut interfaces = Vec::new();
    for link in observed.links.iter().filter(own) {
        let addresses = addresses_of(observed, link);
        let of_link = defaults.iter().filter(|(_, links)| links.contains(&link.index));
        let default_route: Vec<Family> = of_link.map(|(family, _)| *family).collect();
        let names = [&link.name]
            .into_iter()
            .chain(&link.altnames)
            .filter(|_| !addresses.is_empty());
        interfaces.extend(names.map(|name| NodeInterface {
            name: name.clone(),
            addresses: addresses.clone(),
            default_route: default_route.clone(),
        }));
    }
    interfaces.sort();
    interfaces
}

pub(super) fn underlay_link(observed: &Observed, address: IpAddr) -> Option<Underlay> {
    let holder = observed.addresses.iter().find(|a| a.address == address)?;
    let link = observed.link(holder.index)?;
    Some(Underlay {
        link: link.into(),
        mtu: link.mtu,
    })
}

/// The numbers in use: a gateway's table has a default route by the tunnel, its next hop a MAC address, and
/// that a remote, which is the gateway's underlay address. Of several numbers of one gateway the lowest
/// counts.
pub fn gateway_numbers(net: &Net, numbers: &Numbers) -> BTreeMap<IpAddr, u8> {
    let macs: BTreeMap<IpAddr, MacAddr> = net.neighbours.iter().map(|n| (n.address, n.mac)).collect();
    let remotes: BTreeMap<MacAddr, IpAddr> = net.fdb.iter().map(|e| (e.mac, e.remote)).collect();
    let mut in_use = BTreeMap::new();
    for route in &net.routes {
        let (Some(number), RouteKind::Tunnel { via }) = (numbers.number_of_table(route.table), &route.kind)
        else {
            continue;
        };
        let remote = macs.get(via).and_then(|mac| remotes.get(mac)).copied();
        // An IPv4 gateway's own address is its next hop.
        let gateway = remote.or(Some(*via).filter(IpAddr::is_ipv4));
        if let Some(gateway) = gateway.filter(|_| route.to.prefix_len() == 0) {
            in_use.entry(gateway).or_insert(number);
        }
    }
    in_use
}

fn addresses_of(observed: &Observed, link: &NodeLink) -> Vec<IpAddr> {
    let mut held: Vec<_> = observed
        .addresses
        .iter()
        .filter(|a| a.index == link.index && nameable(a) && !pods_gateway(observed, link, a))
        .collect();
    // Within a rank, IPv4 addresses keep the kernel's order, in which it prefers the first; that of IPv6
    // addresses means nothing.
    held.sort_by_key(|a| {
        let v6 = Some(a.address).filter(IpAddr::is_ipv6);
        (v6.is_some(), a.deprecated, a.secondary, v6)
    });
    held.into_iter().map(|a| a.address).collect()
}

/// Whether a policy may name the address.
fn nameable(address: &NodeAddress) -> bool {
    let special = match address.address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_multicast(),
    };
    address.global && !special && !address.unusable && (!address.deprecated || address.permanent)
}

/// Some CNIs give the node's end of every pod's veth the same host address, the pod's gateway. An
/// interface of the node that is a veth itself, as in kind, has a default route or its network's prefix.
fn pods_gateway(observed: &Observed, link: &NodeLink, address: &NodeAddress) -> bool {
    let uplink = || observed.default_routes().any(|route| route.link == link.index);
    link.is_nodes_end() && address.is_single() && !uplink()
}
