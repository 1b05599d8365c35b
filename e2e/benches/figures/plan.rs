//! Plans for the topology's source and gateway, of any size, as the operator would write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::{
    EgressPlanSpec,
    interval::Interval,
    plan::{Destination, Family, GatewayRole, Peer, PlanPod, PlanPolicy, Profile, SourceRole},
    policy::{NoGateway, OnChange},
    ports::PortRange,
};
use egressnat_e2e::topology::{API_SERVER, Dual, Node, PODS, Pod, SEGMENT, SERVICES, Topology};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How much of everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Selected pods of each node.
    pub pods: u32,
    /// Policies.
    pub policies: u16,
}

/// A small node.
pub const SMALL: Scale = Scale {
    pods: 10,
    policies: 1,
};
/// Far more than any node has.
pub const LARGE: Scale = Scale {
    pods: 10_000,
    policies: 1_000,
};

/// How many policies select the same pod, where there are as many.
const POLICIES_PER_POD: u16 = 10;

/// The plan of a node that sends by the tunnel, to `topology.gateway`.
pub fn of_source(topology: &Topology, scale: Scale) -> EgressPlanSpec {
    let Topology { source, gateway, .. } = topology;
    EgressPlanSpec {
        peers: vec![peer(gateway, Vec::new())],
        ..common(topology, source, scale)
    }
}

/// The plan of the gateway, which has selected pods of its own.
pub fn of_gateway(topology: &Topology, scale: Scale) -> EgressPlanSpec {
    let Topology { source, gateway, .. } = topology;
    let ranges = source.pod_ranges().into_iter().filter_map(|net| net.parse().ok());
    let mut plan = EgressPlanSpec {
        peers: vec![peer(source, ranges.collect())],
        ..common(topology, gateway, scale)
    };
    for policy in &mut plan.policies {
        policy.gateway = Some(GatewayRole {
            addresses: gateway.egress.both().into(),
            source_ports: None,
        });
    }
    plan
}

/// The gateway's plan with ports of which a client chooses none by itself (`ip_local_port_range`).
pub fn with_ports(mut plan: EgressPlanSpec) -> EgressPlanSpec {
    for role in plan.policies.iter_mut().filter_map(|p| p.gateway.as_mut()) {
        role.source_ports = PortRange::new(2_000, 31_999).ok();
    }
    plan
}

/// A pod of a node, beside those that are really there.
pub fn filler(number: u32) -> PlanPod {
    let v6 = (0xfd00_0010_0241_0080_u128 << 64) + u128::from(number);
    PlanPod {
        uid: format!("7d0c51e4-3a1b-4e58-9f4e-{number:012x}"),
        name: format!("default/pod-{number:05}"),
        ips: vec![
            Ipv4Addr::from(0x0af1_8000 + number).into(),
            Ipv6Addr::from(v6).into(),
        ],
        profile: 1,
    }
}

/// The pod that `node` really has leads, then the fillers.
fn common(topology: &Topology, node: &Node, scale: Scale) -> EgressPlanSpec {
    let profiles = profiles(scale);
    let count = profiles.len() as u32;
    let fillers = (1..scale.pods).map(|number| PlanPod {
        profile: number % count + 1,
        ..filler(number)
    });
    EgressPlanSpec {
        underlay: Some(node.address.v4.into()),
        cluster: cluster(topology),
        policies: (1..=scale.policies).map(|id| policy(topology, id)).collect(),
        pods: std::iter::once(selected(&node.pods[0], count))
            .chain(fillers)
            .collect(),
        profiles,
        ..EgressPlanSpec::default()
    }
}

fn peer(node: &Node, ranges: Vec<IpNet>) -> Peer {
    Peer {
        node: node.name.into(),
        underlay: node.address.v4.into(),
        ranges,
    }
}

fn policy(topology: &Topology, id: u16) -> PlanPolicy {
    PlanPolicy {
        id,
        name: format!("policy-{id}"),
        source: Some(SourceRole {
            gateway: Some(topology.gateway.name.into()),
            families: vec![Family::IPv4, Family::IPv6],
            no_gateway: NoGateway::Drop,
            on_change: OnChange::Cut,
        }),
        gateway: None,
    }
}

/// Its profile is the last one, which has the last policy: the one to the server.
fn selected(pod: &Pod, profile: u32) -> PlanPod {
    PlanPod {
        uid: pod.name.clone(),
        name: format!("default/{}", pod.name),
        ips: pod.address.both().into(),
        profile,
    }
}

fn profiles(scale: Scale) -> Vec<Profile> {
    let ids: Vec<u16> = (1..=scale.policies).collect();
    let groups = ids.chunks(POLICIES_PER_POD.into()).zip(1..);
    groups
        .map(|(ids, id)| {
            let mut destinations: Vec<_> = ids.iter().flat_map(|id| destinations(*id, scale)).collect();
            destinations.sort();
            Profile { id, destinations }
        })
        .collect()
}

/// A policy has one destination of each family; the last one's is the segment with the server.
fn destinations(id: u16, scale: Scale) -> impl Iterator<Item = Destination> {
    let nets: Vec<IpNet> = if id == scale.policies {
        SEGMENT.iter().filter_map(|net| net.parse().ok()).collect()
    } else {
        let v4 = Ipv4Addr::from(0x1400_0000 + (u32::from(id) << 8));
        let v6 = Ipv6Addr::from((0x2001_0db9_u128 << 96) + (u128::from(id) << 64));
        vec![
            Ipv4Net::new_assert(v4, 24).into(),
            Ipv6Net::new_assert(v6, 64).into(),
        ]
    };
    nets.into_iter().map(move |net| Destination {
        range: net.into(),
        policy: id,
    })
}

/// Pods, Services, every node's addresses, the API server.
fn cluster(topology: &Topology) -> Vec<Interval> {
    let ranges = PODS.iter().chain(&SERVICES).filter_map(|net| net.parse().ok());
    let nodes = topology.nodes().map(|node| node.address);
    let hosts = nodes.into_iter().chain([API_SERVER]).flat_map(Dual::both);
    let mut intervals: Vec<Interval> = ranges
        .chain(hosts.map(|host: IpAddr| IpNet::from(host)))
        .map(Interval::from)
        .collect();
    intervals.sort();
    intervals
}
