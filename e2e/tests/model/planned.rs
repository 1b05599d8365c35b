//! A verdict read off the planner's output, as the contract in the crate of the API says.

use std::net::IpAddr;

use egressnat_crds::plan::{EgressPlanSpec, Family, GatewayRole, PlanPolicy};
use egressnat_crds::policy::NoGateway;
use egressnat_operator::plan::Outcome;
use ipnet::IpNet;

use crate::expected::Capture;
use crate::world::Pod;

/// What no agent captures, whatever its plan says.
const NEVER: [&str; 7] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// What the plans do to a packet of `pod`. An error where they contradict one another.
pub fn planned(outcome: &Outcome, pod: &Pod, destination: IpAddr) -> Result<Option<Capture>, String> {
    let node = pod.spec.node_name.as_deref().unwrap_or_default();
    let Some(plan) = outcome.plans.get(node) else {
        return Ok(None);
    };
    let Some(policy) = policy_of(plan, pod, destination)? else {
        return Ok(None);
    };
    let source = policy.source.as_ref().ok_or("the policy has no source role")?;
    let name = policy.name.clone();
    let family = Family::from(destination);
    match (&source.gateway, source.no_gateway) {
        (Some(gateway), _) if source.families.contains(&family) => {
            let role = role(outcome, node, gateway, policy.id)?;
            let mut of_family = role.addresses.iter().filter(|a| Family::from(**a) == family);
            let address = of_family
                .next()
                .ok_or("the gateway has no address of the family")?;
            Ok(Some(Capture::Egress {
                policy: name,
                gateway: gateway.clone(),
                address: *address,
                ports: role.source_ports,
            }))
        }
        (_, NoGateway::Drop) => Ok(Some(Capture::Dropped { policy: name })),
        (_, NoGateway::NodeIP) => Ok(Some(Capture::NodeAddress { policy: name })),
    }
}

/// The policy that the plan of the pod's node has for the packet.
fn policy_of<'a>(
    plan: &'a EgressPlanSpec,
    pod: &Pod,
    destination: IpAddr,
) -> Result<Option<&'a PlanPolicy>, String> {
    let never = NEVER.iter().map(|n| n.parse::<IpNet>().unwrap());
    let entry = plan.pods.iter().find(|p| p.uid == pod.metadata.uid);
    let Some(entry) = entry.filter(|p| p.ips.iter().any(|ip| ip.is_ipv4() == destination.is_ipv4())) else {
        return Ok(None);
    };
    if plan.cluster.iter().any(|r| r.contains(destination))
        || never.into_iter().any(|n| n.contains(&destination))
    {
        return Ok(None);
    }
    let profile = plan.profiles.iter().find(|p| p.id == entry.profile);
    let profile = profile.ok_or("the pod's profile is not in the plan")?;
    let Some(interval) = profile
        .destinations
        .iter()
        .find(|d| d.range.contains(destination))
    else {
        return Ok(None);
    };
    let policy = plan.policies.iter().find(|p| p.id == interval.policy);
    Ok(Some(policy.ok_or("the interval's policy is not in the plan")?))
}

/// What the gateway's own plan says of the policy.
fn role<'a>(outcome: &'a Outcome, node: &str, gateway: &str, id: u16) -> Result<&'a GatewayRole, String> {
    let there = outcome.plans.get(gateway).ok_or("the gateway has no plan")?;
    let peers = &outcome.plans[node].peers;
    if gateway != node
        && !peers
            .iter()
            .any(|p| p.node == gateway && Some(p.underlay) == there.underlay)
    {
        return Err(format!("{gateway} is no peer of {node}"));
    }
    let policy = there.policies.iter().find(|p| p.id == id);
    policy
        .and_then(|p| p.gateway.as_ref())
        .ok_or_else(|| "the gateway does not know the policy".into())
}
