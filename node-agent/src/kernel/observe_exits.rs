//! The links by which egress addresses leave although the main table would send their packets by another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::plan::{EgressPlanSpec, Family};
use ipnet::IpNet;

use super::observe_facts::underlay_link;
use super::rtnl::{NodeRoute, Observed};
use super::sysctl::{SysctlError, Sysctls};
use crate::diff::ObservedTable;
use crate::facts::Exit;
use crate::model::{Data, ElementKey, Link, Net, RouteKind};
use crate::owned::{Numbers, RP_FILTER};

/// The exits that the plan needs, by the link's index. `table` is ours, as the kernel shows it.
pub(super) fn exits(
    observed: &Observed,
    sysctls: &Sysctls,
    plan: &EgressPlanSpec,
    table: Option<&ObservedTable>,
) -> Result<Vec<Exit>, SysctlError> {
    let mut by_link: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
    let usual = [Family::IPv4, Family::IPv6].map(|family| (family, usual_link(observed, plan, family)));
    for (address, holders) in holders(observed, plan) {
        let leaves = |(family, usual): &(Family, Option<u32>)| {
            *family == address.into() && usual.is_some_and(|link| holders.contains(&link))
        };
        if let (false, Some(link)) = (usual.iter().any(leaves), holders.first()) {
            by_link.entry(*link).or_default().insert(address);
        }
    }
    let found = table.map(remembered).unwrap_or_default();
    let exit = |(index, addresses): (u32, BTreeSet<IpAddr>)| {
        let link: Link = observed.link(index)?.into();
        let strict = match addresses.iter().any(IpAddr::is_ipv4) {
            true => strict(&link, &found, sysctls),
            false => Ok(None),
        };
        Some(strict.map(|strict| Exit {
            routes: routes(observed, index, &addresses),
            link,
            addresses,
            strict,
        }))
    };
    by_link.into_iter().filter_map(exit).collect()
}

/// The numbers in use, by the link's index: in an exit's table routes lead to one link alone.
pub fn exit_numbers(net: &Net, numbers: &Numbers) -> BTreeMap<u32, u8> {
    let mut in_use = BTreeMap::new();
    for route in &net.routes {
        if let (Some(number), RouteKind::Link { link, .. }) =
            (numbers.number_of_table(route.table), &route.kind)
        {
            in_use.entry(link.index).or_insert(number);
        }
    }
    in_use
}

/// What `rp_filter` was on each link that we have made loose, by the link's index.
pub fn remembered(table: &ObservedTable) -> BTreeMap<u32, u8> {
    let elements = table.sets.get(RP_FILTER).into_iter().flat_map(|s| &s.elements);
    elements
        .filter_map(|element| match element {
            (ElementKey::Mark(index), Data::Mark(found)) => Some((*index, u8::try_from(*found).ok()?)),
            _ => None,
        })
        .collect()
}

/// The links of each address that this node sends with as a gateway. An address on a link that leads nowhere leaves by
/// the main table's.
fn holders(observed: &Observed, plan: &EgressPlanSpec) -> BTreeMap<IpAddr, BTreeSet<u32>> {
    let roles = plan.policies.iter().filter_map(|p| p.gateway.as_ref());
    let sends_with: BTreeSet<&IpAddr> = roles.flat_map(|g| &g.addresses).collect();
    let held = observed
        .addresses
        .iter()
        .filter(|a| !a.unusable && sends_with.contains(&a.address));
    let mut holders: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
    for held in held {
        if observed.link(held.index).is_some_and(|l| !l.leads_nowhere()) {
            holders.entry(held.address).or_default().insert(held.index);
        }
    }
    holders
}

/// The link by which a family leaves anyway: the default route's, or, on a node without one, that under the tunnel.
/// None where there are several at once, of which the kernel takes any.
fn usual_link(observed: &Observed, plan: &EgressPlanSpec, family: Family) -> Option<u32> {
    let links = observed.default_links(family);
    match links.len() {
        0 => Some(underlay_link(observed, plan.underlay?)?.link.index),
        1 => links.first().copied(),
        _ => None,
    }
}

/// The link's own routes of the addresses' families: those of table main, and where that has no default route by
/// the link, that of another table, as nodes with several networks have them. Without any, two links may be in one
/// network: a next hop of another's default route is the link's as well, if it is a neighbour there.
fn routes(observed: &Observed, link: u32, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpNet, Option<IpAddr>> {
    let families: BTreeSet<Family> = addresses.iter().map(|a| (*a).into()).collect();
    let mut by_link: Vec<&NodeRoute> = observed
        .routes
        .iter()
        .filter(|r| r.link == link && families.contains(&r.to.addr().into()))
        .collect();
    by_link.sort_by_key(preference);
    let mut routes = BTreeMap::new();
    for route in by_link {
        routes.entry(route.to).or_insert(route.via);
    }
    let mut others: Vec<&NodeRoute> = observed
        .routes
        .iter()
        .filter(|r| r.to.prefix_len() == 0)
        .collect();
    others.sort_by_key(preference);
    for route in others {
        let family = Family::from(route.to.addr());
        let neighbour = route.via.filter(|via| is_neighbour(&routes, *via));
        if families.contains(&family) && neighbour.is_some() {
            routes.entry(route.to).or_insert(neighbour);
        }
    }
    routes
}

fn preference(route: &&NodeRoute) -> (bool, u32, u32) {
    (!route.is_of_main(), route.table, route.metric)
}

/// Whether an address is on the network of a link with these routes. Link-local ones are on every link's.
fn is_neighbour(routes: &BTreeMap<IpNet, Option<IpAddr>>, address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
    let on_link = routes
        .iter()
        .filter(|(to, via)| via.is_none() && to.prefix_len() > 0);
    !link_local && on_link.into_iter().any(|(to, _)| to.contains(&address))
}

/// See [`Exit::strict`]. The kernel takes the higher of the link's value and that of `all`: 2 is loose, 1 strict.
fn strict(link: &Link, found: &BTreeMap<u32, u8>, sysctls: &Sysctls) -> Result<Option<u8>, SysctlError> {
    if let Some(found) = found.get(&link.index) {
        return Ok(Some(*found));
    }
    let value = |name: &str| -> Result<Option<u8>, SysctlError> {
        let text = sysctls.read(&rp_filter(name))?;
        Ok(text.and_then(|t| t.parse().ok()))
    };
    let (all, own) = (value("all")?.unwrap_or(0), value(&link.name)?.unwrap_or(0));
    Ok((all.max(own) == 1).then_some(own))
}

/// The setting of a link, below `/proc/sys/net`.
pub fn rp_filter(link: &str) -> String {
    format!("ipv4/conf/{link}/rp_filter")
}
