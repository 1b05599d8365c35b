//! What an address is to the cluster, where that keeps every policy off it.

use std::fmt;
use std::net::IpAddr;

use egressnat_crds::interval::Interval;
use egressnat_operator::address::never_captured;
use egressnat_operator::plan::cluster;
use egressnat_operator::world::World;
use ipnet::IpNet;

use crate::services::Exposed;
use crate::snapshot::Snapshot;
use crate::words;

/// Why no policy captures packets to an address, whatever its destinations say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address of the API server.
    ApiServer,
    /// An address of this node.
    Node(String),
    /// In this Service range.
    Service(IpNet),
    /// Another address of a Service.
    Exposed(Exposed),
    /// The address of this pod, `namespace/name`.
    Pod(String),
    /// In this pod range, of this node.
    PodRange(IpNet, String),
    /// In this range, which the operator was told to be the cluster's.
    ClusterRange(Interval),
    /// Of this kind, with its article, which never leaves by a gateway.
    Never(&'static str),
}

/// What the address is, `None` for one that policies can capture. Without a port, any port is meant.
pub fn place(snapshot: &Snapshot, address: IpAddr, port: Option<u16>) -> Option<Place> {
    in_cluster(&snapshot.world, address).or_else(|| {
        let exposed = snapshot.services.iter().find(|s| s.takes(address, port))?;
        Some(Place::Exposed(exposed.clone()))
    })
}

fn in_cluster(world: &World, address: IpAddr) -> Option<Place> {
    if let Some(kind) = never_captured(address) {
        return Some(Place::Never(kind));
    }
    let cluster = cluster::ranges(world);
    let range = cluster.iter().find(|r| r.contains(address))?;
    let place = api_server(world, address)
        .or_else(|| node(world, address))
        .or_else(|| service(world, address))
        .or_else(|| pod(world, address))
        .or_else(|| pod_range(world, address));
    Some(place.unwrap_or(Place::ClusterRange(*range)))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => write!(f, "it is an address of the API server"),
            Self::Node(node) => write!(f, "it is an address of node {node}"),
            Self::Service(range) => write!(
                f,
                "it is a Service address (range {range}); where the Service leads out of the cluster, the \
                 endpoint's address counts: ask for that"
            ),
            Self::Exposed(exposed) => exposed.fmt(f),
            Self::Pod(pod) => write!(f, "it is the address of pod {pod}"),
            Self::PodRange(range, node) => write!(f, "it is in the pod range {range} of node {node}"),
            Self::ClusterRange(range) => {
                write!(f, "it is in {}, a range of the cluster", words::range(range))
            }
            Self::Never(kind) => write!(f, "it is {kind}"),
        }
    }
}

fn api_server(world: &World, address: IpAddr) -> Option<Place> {
    let known = world.api_servers.values().any(|a| a.contains(&address));
    known.then_some(Place::ApiServer)
}

fn node(world: &World, address: IpAddr) -> Option<Place> {
    let holds = |name: &str| {
        world
            .interfaces(name)
            .iter()
            .any(|i| i.addresses.contains(&address))
    };
    let mut nodes = world.nodes.iter();
    let (name, _) = nodes.find(|(name, n)| {
        n.addresses.contains(&address) || n.internal_ips.contains(&address) || holds(name)
    })?;
    Some(Place::Node(name.clone()))
}

fn service(world: &World, address: IpAddr) -> Option<Place> {
    let mut ranges = world.service_cidrs.values().flatten();
    ranges.find(|r| r.contains(&address)).copied().map(Place::Service)
}

fn pod(world: &World, address: IpAddr) -> Option<Place> {
    let mut pods = world.pods.iter();
    let (key, _) = pods.find(|(_, p)| p.eligible() && p.ips.contains(&address))?;
    Some(Place::Pod(key.clone()))
}

fn pod_range(world: &World, address: IpAddr) -> Option<Place> {
    let mut ranges = world
        .nodes
        .iter()
        .flat_map(|(name, n)| n.pod_cidrs.iter().map(move |r| (r, name)));
    let (range, node) = ranges.find(|(r, _)| r.contains(&address))?;
    Some(Place::PodRange(*range, node.clone()))
}
