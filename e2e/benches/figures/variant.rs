//! What is compared: eight worlds of three nodes, and in each the pods whose packets are measured.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use egressnat_agent::{agent::Datapath, cli::Cli};
use egressnat_crds::EgressPlanSpec;
use egressnat_e2e::topology::{Node, Options, Pod, SERVER, Topology, ask_tcp, ask_udp};

use crate::{
    plain,
    plan::{self, LARGE, SMALL, Scale},
    probe::Way,
};

/// A kind of pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// On a node that knows only the CNI's masquerade.
    Masquerade,
    /// The same once more, on another such node: what differs from the first is noise.
    Control,
    /// The same beside one IP rule that matches nothing: what policy routing costs, whoever has need of it.
    Ruled,
    /// Not selected, on a node with selected ones.
    Unselected,
    /// Selected, on the gateway.
    Local,
    /// The same, and the policy gives none of the ports that clients choose: a connection costs a search.
    Ports,
    /// Selected, on another node than the gateway.
    Tunnel,
    /// By the tunnel that [`plain::tunnel`] makes.
    PlainTunnel,
    /// The same, and conntrack is kept off its UDP.
    UntrackedTunnel,
}

impl Kind {
    /// First part of the results' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Control => "control",
            Self::Ruled => "ruled",
            Self::Unselected => "unselected",
            Self::Local => "local",
            Self::Ports => "ports",
            Self::Tunnel => "tunnel",
            Self::PlainTunnel => "plain_tunnel",
            Self::UntrackedTunnel => "untracked_tunnel",
        }
    }

    /// What it is compared with.
    pub fn baseline(self) -> Option<Self> {
        match self {
            Self::Masquerade | Self::PlainTunnel => None,
            Self::UntrackedTunnel => Some(Self::PlainTunnel),
            Self::Control | Self::Ruled | Self::Unselected | Self::Local => Some(Self::Masquerade),
            Self::Ports => Some(Self::Local),
            Self::Tunnel => Some(Self::PlainTunnel),
        }
    }

    /// What else it is compared with.
    pub fn second_baseline(self) -> Option<Self> {
        match self {
            Self::Unselected => Some(Self::Ruled),
            Self::Tunnel => Some(Self::UntrackedTunnel),
            _ => None,
        }
    }
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    /// The kind of pod.
    pub kind: Kind,
    /// How much the node's table holds, where it has ours.
    pub scale: Option<Scale>,
    /// From the pod to the server.
    pub way: Way<'a>,
    /// With this address.
    expected: IpAddr,
}

/// Every node with its pods.
#[derive(Debug)]
pub struct Worlds {
    masquerade: Topology,
    control: Topology,
    ruled: Topology,
    small: Topology,
    large: Topology,
    ports: Topology,
    plain: Topology,
    untracked: Topology,
}

impl Worlds {
    /// Makes and programs them all.
    pub fn new() -> Result<Self> {
        let bare = || -> Result<Topology> {
            let topology = Topology::new(Options::default())?;
            // The wire is no router: netfilter sees no frame there. Not every kernel could have it otherwise.
            let _ = topology.outside.sysctl("net.bridge.bridge-nf-call-iptables", "0");
            Ok(topology)
        };
        let worlds = Self {
            masquerade: bare()?,
            control: bare()?,
            ruled: bare()?,
            small: bare()?,
            large: bare()?,
            ports: bare()?,
            plain: bare()?,
            untracked: bare()?,
        };
        program(&worlds.small, SMALL)?;
        program(&worlds.large, LARGE)?;
        on_node(
            &worlds.ports.gateway,
            &plan::with_ports(plan::of_gateway(&worlds.ports, SMALL)),
        )?;
        plain::rule(&worlds.ruled.source)?;
        plain::tunnel(&worlds.plain)?;
        plain::tunnel(&worlds.untracked)?;
        plain::untrack(&worlds.untracked)?;
        Ok(worlds)
    }

    /// Every variant, baselines first.
    pub fn variants(&self) -> Vec<Variant<'_>> {
        let bare = |topology, kind| variant(topology, kind, None);
        let mut variants = vec![
            bare(&self.masquerade, Kind::Masquerade),
            bare(&self.control, Kind::Control),
            bare(&self.ruled, Kind::Ruled),
            bare(&self.plain, Kind::PlainTunnel),
            bare(&self.untracked, Kind::UntrackedTunnel),
        ];
        for kind in [Kind::Unselected, Kind::Local, Kind::Tunnel] {
            variants.push(variant(&self.small, kind, Some(SMALL)));
            variants.push(variant(&self.large, kind, Some(LARGE)));
        }
        variants.push(variant(&self.ports, Kind::Ports, Some(SMALL)));
        variants
    }
}

impl Variant<'_> {
    /// The server sees the address that the variant is about, by TCP and UDP.
    pub fn check(&self) -> Result<()> {
        let Way { client, address, .. } = self.way;
        for seen in [ask_tcp(client, address)?, ask_udp(client, address)?] {
            let expected = self.expected;
            ensure!(
                seen == expected,
                "{:?}: seen as {seen}, not {expected}",
                self.kind
            );
        }
        Ok(())
    }
}

fn variant(topology: &Topology, kind: Kind, scale: Option<Scale>) -> Variant<'_> {
    let Topology {
        source,
        gateway,
        outside,
        ..
    } = topology;
    let (pod, expected): (&Pod, _) = match kind {
        Kind::Masquerade | Kind::Control | Kind::Ruled => (&source.pods[0], source.address),
        Kind::Unselected => (&source.pods[1], source.address),
        Kind::Local | Kind::Ports => (&gateway.pods[0], gateway.egress),
        Kind::Tunnel | Kind::PlainTunnel | Kind::UntrackedTunnel => (&source.pods[0], gateway.egress),
    };
    Variant {
        kind,
        scale,
        way: Way {
            client: &pod.netns,
            server: outside,
            address: SERVER.v4.into(),
        },
        expected: expected.v4.into(),
    }
}

fn program(topology: &Topology, scale: Scale) -> Result<()> {
    on_node(&topology.gateway, &plan::of_gateway(topology, scale))?;
    on_node(&topology.source, &plan::of_source(topology, scale))
}

/// What the agent does, once. The datapath stays in place.
fn on_node(node: &Node, plan: &EgressPlanSpec) -> Result<()> {
    node.netns
        .run(|| {
            in_datapath(node, async |datapath| {
                Ok(datapath.sync(Some(plan)).await.map(drop)?)
            })
        })?
        .with_context(|| format!("failed to program node {}", node.name))
}

/// Runs `work` with the agent's datapath, in the calling thread and its namespace.
pub fn in_datapath<T>(node: &Node, work: impl AsyncFnOnce(&mut Datapath) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cli = Cli::parse_from(["egressnat-agent", "--node-name", node.name]);
        work(&mut Datapath::open(&cli)?).await
    })
}
