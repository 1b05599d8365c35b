//! Links, programs on them and settings that keep packets from the rules, or from passing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;

use super::{Clash, ReadingsError};
use crate::kernel::rtnl::{NodeLink, Observed, Rtnl, TcHook};

/// Devices by which programs are known whose BPF hooks netlink does not show (tcx, netkit).
const KNOWN: [(&str, &str); 2] = [("cilium_host", "Cilium"), ("bpfout.cali", "Calico (eBPF)")];

/// How many pods are looked for.
const PODS: usize = 256;
/// On the links of how many pods programs are looked for.
const POD_LINKS: usize = 8;

/// A pod that is not reached by a link of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Astray {
    /// The pod, `namespace/name`.
    pub pod: String,
    /// The link that leads to its address, if one does.
    pub link: Option<String>,
}

/// Programs and settings that are in the way of what the plan says.
pub async fn surroundings(
    rtnl: &mut Rtnl,
    observed: &Observed,
    plan: &EgressPlanSpec,
) -> Result<Vec<Clash>, ReadingsError> {
    let mut found = programs(rtnl, observed, plan).await?;
    found.extend(not_forwarding(rtnl, observed, plan)?);
    found.extend(strict(rtnl, observed, plan).await?);
    Ok(found)
}

/// The plan's pods that are reached by the node's own links, or not at all: their packets pass this node by.
pub async fn astray(
    rtnl: &mut Rtnl,
    observed: &Observed,
    plan: &EgressPlanSpec,
) -> Result<BTreeMap<IpAddr, Astray>, ReadingsError> {
    let uplinks = uplinks(observed, plan);
    let pods = plan
        .pods
        .iter()
        .flat_map(|pod| pod.ips.iter().map(move |ip| (pod, *ip)));
    let mut astray = BTreeMap::new();
    for (pod, ip) in pods.take(PODS) {
        let link = rtnl.link_to(ip).await?;
        if link.is_none_or(|link| uplinks.contains(&link)) {
            let found = Astray {
                pod: pod.name.clone(),
                link: link.and_then(|link| Some(observed.link(link)?.name.clone())),
            };
            astray.insert(ip, found);
        }
    }
    Ok(astray)
}

/// The links that lead out of the node: that under the tunnel, and those of default routes.
fn uplinks(observed: &Observed, plan: &EgressPlanSpec) -> BTreeSet<u32> {
    let defaults = observed.default_routes().map(|route| route.link);
    defaults
        .chain(underlay(observed, plan).map(|link| link.index))
        .collect()
}

fn underlay<'a>(observed: &'a Observed, plan: &EgressPlanSpec) -> Option<&'a NodeLink> {
    let held = observed
        .addresses
        .iter()
        .find(|a| Some(a.address) == plan.underlay)?;
    observed.link(held.index)
}

/// BPF programs: where packets leave the node, and where those of selected pods come in.
async fn programs(
    rtnl: &mut Rtnl,
    observed: &Observed,
    plan: &EgressPlanSpec,
) -> Result<Vec<Clash>, ReadingsError> {
    let uplinks = uplinks(observed, plan);
    let mut places: BTreeSet<(u32, TcHook)> = uplinks.iter().map(|link| (*link, TcHook::Egress)).collect();
    for ip in plan.pods.iter().flat_map(|pod| &pod.ips).take(POD_LINKS) {
        let link = rtnl.link_to(*ip).await?.filter(|link| !uplinks.contains(link));
        places.extend(link.map(|link| (link, TcHook::Ingress)));
    }
    let mut found = Vec::new();
    for (index, hook) in places {
        let programs = rtnl.bpf_programs(index, hook).await?;
        if let Some(link) = observed.link(index).filter(|_| !programs.is_empty()) {
            found.push(Clash::BpfProgram {
                link: link.name.clone(),
                egress: hook == TcHook::Egress,
                programs: programs.into_iter().collect(),
            });
        }
    }
    let known = KNOWN
        .iter()
        .find(|(name, _)| observed.links.iter().any(|link| link.name == *name));
    if let (Some((device, owner)), true) = (known, found.is_empty()) {
        found.push(Clash::BpfOwner { owner, device });
    }
    Ok(found)
}

/// IPv4 is forwarded by the link that a packet comes in by; IPv6 has one switch for all.
fn not_forwarding(
    rtnl: &Rtnl,
    observed: &Observed,
    plan: &EgressPlanSpec,
) -> Result<Vec<Clash>, ReadingsError> {
    let v4 = plan.policies.iter().filter_map(|policy| policy.gateway.as_ref());
    let v4 = v4.flat_map(|gateway| &gateway.addresses).any(IpAddr::is_ipv4);
    let links = observed.default_links(Family::IPv4).into_iter().filter(|_| v4);
    let mut found = Vec::new();
    for link in links.filter_map(|index| observed.link(index)) {
        let value = rtnl
            .sysctls()
            .read(&format!("ipv4/conf/{}/forwarding", link.name))?;
        if value.as_deref() == Some("0") {
            found.push(Clash::LinkForwardsNot {
                link: link.name.clone(),
            });
        }
    }
    Ok(found)
}

/// A strict filter under the tunnel drops what comes from peers to which another link leads.
async fn strict(
    rtnl: &mut Rtnl,
    observed: &Observed,
    plan: &EgressPlanSpec,
) -> Result<Vec<Clash>, ReadingsError> {
    let Some(link) = underlay(observed, plan) else {
        return Ok(Vec::new());
    };
    let mut filter = 0;
    for of in ["all", &link.name] {
        let value = rtnl.sysctls().read(&format!("ipv4/conf/{of}/rp_filter"))?;
        filter = filter.max(value.and_then(|value| value.parse().ok()).unwrap_or(0));
    }
    let mut found = Vec::new();
    for peer in plan
        .peers
        .iter()
        .filter(|peer| filter == 1 && peer.underlay.is_ipv4())
    {
        let way = rtnl.link_to(peer.underlay).await?;
        if way != Some(link.index) {
            found.push(Clash::ReversePath {
                link: link.name.clone(),
                peer: peer.underlay,
            });
        }
    }
    Ok(found)
}
