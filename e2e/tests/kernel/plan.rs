//! Plans for the topology's nodes, as the operator would write them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::{
    EgressPlanSpec,
    interval::Interval,
    plan::{Destination, GatewayRole, Peer, PlanPod, PlanPolicy, Profile, SourceRole},
    policy::{NoGateway, OnChange},
    ports::PortRange,
};
use egressnat_e2e::topology::{API_SERVER, Dual, Family, Node, PODS, Pod, SERVICES, Topology};
use ipnet::IpNet;

/// Everything, in both families.
pub const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A policy, in the terms of the topology.
#[derive(Clone, Debug)]
pub struct Policy {
    id: u16,
    destinations: Vec<IpNet>,
    gateway: Option<String>,
    addresses: Vec<IpAddr>,
    source_ports: Option<PortRange>,
    no_gateway: NoGateway,
    on_change: OnChange,
    pods: BTreeSet<String>,
}

impl Policy {
    /// Selects nothing, leads nowhere.
    pub fn new(id: u16) -> Self {
        Self {
            id,
            destinations: Vec::new(),
            gateway: None,
            addresses: Vec::new(),
            source_ports: None,
            no_gateway: NoGateway::Drop,
            on_change: OnChange::Cut,
            pods: BTreeSet::new(),
        }
    }

    /// Applies to these destinations, too.
    pub fn to(mut self, destinations: &[&str]) -> Self {
        let nets = destinations
            .iter()
            .map(|net| net.parse::<IpNet>().expect("a CIDR"));
        self.destinations.extend(nets);
        self
    }

    /// Leaves by this node with these addresses.
    pub fn via(self, gateway: &Node, addresses: Dual) -> Self {
        self.via_only(gateway, &addresses.both())
    }

    /// Leaves by this node with these addresses, which may lack a family.
    pub fn via_only(mut self, gateway: &Node, addresses: &[IpAddr]) -> Self {
        self.gateway = Some(gateway.name.into());
        self.addresses = addresses.to_vec();
        self
    }

    /// Leaves with these ports alone.
    pub fn ports(mut self, ports: &str) -> Self {
        self.source_ports = Some(ports.parse().expect("a range of ports"));
        self
    }

    /// What happens where no gateway serves a packet.
    pub fn otherwise(mut self, no_gateway: NoGateway) -> Self {
        self.no_gateway = no_gateway;
        self
    }

    /// What happens to TCP connections that are older.
    pub fn on_change(mut self, on_change: OnChange) -> Self {
        self.on_change = on_change;
        self
    }

    /// Selects this pod, too.
    pub fn select(mut self, pod: &Pod) -> Self {
        self.pods.insert(pod.name.clone());
        self
    }
}

/// The plan of one node, the tunnel over the nodes' addresses of the family `underlay`. The destinations of policies that select the same pod must be disjoint.
pub fn plan(topology: &Topology, underlay: Family, node: &Node, policies: &[Policy]) -> EgressPlanSpec {
    let own: Vec<(&Pod, Vec<&Policy>)> = used(node, policies).collect();
    let profile_sets: BTreeSet<Vec<u16>> = own.iter().map(|(_, used)| ids(used)).collect();
    let profile_ids: BTreeMap<&Vec<u16>, u32> = profile_sets.iter().zip(1..).collect();
    EgressPlanSpec {
        underlay: Some(node.address.of(underlay)),
        cluster: cluster(topology),
        peers: peers(topology, underlay, node, policies),
        policies: policies
            .iter()
            .filter_map(|policy| part(policy, node, &own))
            .collect(),
        profiles: profile_ids
            .iter()
            .map(|(ids, id)| profile(*id, ids, policies))
            .collect(),
        pods: own
            .iter()
            .map(|(pod, used)| PlanPod {
                uid: pod.name.clone(),
                name: format!("default/{}", pod.name),
                ips: ips(topology, pod.address).collect(),
                profile: profile_ids[&ids(used)],
            })
            .collect(),
        masquerade: None,
        gate: None,
        retired: Vec::new(),
        teardown: false,
    }
}

/// Of a host's addresses those of the families that nodes and pods have.
fn ips(topology: &Topology, address: Dual) -> impl Iterator<Item = IpAddr> {
    topology.families.iter().map(move |family| address.of(*family))
}

/// The pods of a node that policies select, with these.
fn used<'a>(node: &'a Node, policies: &'a [Policy]) -> impl Iterator<Item = (&'a Pod, Vec<&'a Policy>)> {
    node.pods.iter().filter_map(move |pod| {
        let selecting: Vec<_> = policies
            .iter()
            .filter(|policy| policy.pods.contains(&pod.name))
            .collect();
        (!selecting.is_empty()).then_some((pod, selecting))
    })
}

fn ids(policies: &[&Policy]) -> Vec<u16> {
    policies.iter().map(|policy| policy.id).collect()
}

/// Pods, Services, every node's addresses, the API server. Not what policies send with: nobody is reached there.
fn cluster(topology: &Topology) -> Vec<Interval> {
    let ranges = PODS
        .iter()
        .chain(&SERVICES)
        .map(|net| net.parse::<IpNet>().expect("a CIDR"));
    let hosts = topology
        .nodes()
        .map(|node| [node.address, node.secondary])
        .concat();
    let hosts = hosts
        .into_iter()
        .chain([API_SERVER])
        .flat_map(|address| ips(topology, address))
        .map(IpNet::from);
    let ranges = ranges.filter(|range| has_family_of(topology, range));
    let mut intervals: Vec<_> = ranges.chain(hosts).map(Interval::from).collect();
    intervals.sort();
    intervals
}

fn has_family_of(topology: &Topology, range: &IpNet) -> bool {
    topology.families.contains(&match range {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    })
}

fn peers(topology: &Topology, underlay: Family, node: &Node, policies: &[Policy]) -> Vec<Peer> {
    let gateways: BTreeSet<&str> = used(node, policies)
        .flat_map(|(_, used)| used)
        .filter_map(|policy| policy.gateway.as_deref())
        .collect();
    let others = topology
        .nodes()
        .into_iter()
        .filter(|other| other.name != node.name);
    let mut peers: Vec<Peer> = others
        .filter_map(|other| {
            let served = used(other, policies)
                .flat_map(|(_, used)| used)
                .any(|policy| policy.gateway.as_deref() == Some(node.name));
            let ranges = other
                .pod_ranges()
                .iter()
                .map(|net| net.parse().expect("a CIDR"))
                .filter(|range| has_family_of(topology, range))
                .collect();
            (served || gateways.contains(other.name)).then(|| Peer {
                node: other.name.into(),
                underlay: other.address.of(underlay),
                ranges: if served { ranges } else { Vec::new() },
            })
        })
        .collect();
    peers.sort();
    peers
}

fn part(policy: &Policy, node: &Node, own: &[(&Pod, Vec<&Policy>)]) -> Option<PlanPolicy> {
    let uses = own
        .iter()
        .flat_map(|(_, used)| used)
        .any(|used| used.id == policy.id);
    let families: BTreeSet<_> = policy.addresses.iter().map(|address| (*address).into()).collect();
    let source = uses.then(|| SourceRole {
        gateway: policy.gateway.clone(),
        families: families.into_iter().collect(),
        no_gateway: policy.no_gateway,
        on_change: policy.on_change,
    });
    let is_gateway = policy.gateway.as_deref() == Some(node.name);
    let gateway = is_gateway.then(|| GatewayRole {
        addresses: policy.addresses.clone(),
        source_ports: policy.source_ports,
    });
    (source.is_some() || gateway.is_some()).then(|| PlanPolicy {
        id: policy.id,
        name: format!("policy-{}", policy.id),
        source,
        gateway,
    })
}

fn profile(id: u32, ids: &[u16], policies: &[Policy]) -> Profile {
    let of_profile = policies.iter().filter(|policy| ids.contains(&policy.id));
    let mut destinations: Vec<Destination> = of_profile
        .flat_map(|policy| {
            let nets = policy.destinations.iter();
            nets.map(|net| Destination {
                range: (*net).into(),
                policy: policy.id,
            })
        })
        .collect();
    destinations.sort();
    Profile { id, destinations }
}
