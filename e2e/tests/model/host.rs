//! A node's kernel as its agent would make it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_agent::compile::compile;
use egressnat_agent::facts::{Exit, Facts, Underlay};
use egressnat_agent::model::{Desired, Hook, Link, RouteKind};
use egressnat_agent::owned::{Numbers, TUNNEL};
use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Family, NodeInterface};
use egressnat_operator::plan::Outcome;
use ipnet::IpNet;

use crate::gateway::{held, interfaces};
use crate::ruleset::{Dropped, Packet, Table};
use crate::world::{Node, World};

/// A node.
pub struct Host {
    pub name: String,
    pub plan: EgressPlanSpec,
    pub facts: Facts,
    pub desired: Desired,
    /// What the agent has said; a node of which nothing is known has one link.
    interfaces: Vec<NodeInterface>,
}

/// Where a node sends a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the tunnel to this next hop.
    Tunnel(IpAddr),
    /// By this link, whatever the main table says.
    Link(Link),
    /// Nowhere.
    Unreachable,
    /// To itself.
    Local,
    /// As if there were no tunnel.
    Main,
}

/// Every node, as the plans make it.
pub fn hosts(world: &World, outcome: &Outcome) -> Result<BTreeMap<String, Host>, String> {
    let host = |node: &Node| {
        let name = node.metadata.name.clone();
        let plan = outcome
            .plans
            .get(&name)
            .ok_or(format!("{name} has no plan"))?
            .clone();
        let interfaces = interfaces(world, node).to_vec();
        let facts = facts(world, node, &plan);
        let desired =
            compile(&plan, &name, &facts, &Numbers::default()).map_err(|e| format!("{name}: {e}"))?;
        Ok((
            name.clone(),
            Host {
                name,
                plan,
                facts,
                desired,
                interfaces,
            },
        ))
    };
    world.nodes.iter().map(host).collect()
}

/// What the node's kernel would show.
fn facts(world: &World, node: &Node, plan: &EgressPlanSpec) -> Facts {
    let mut addresses: BTreeSet<IpAddr> = held(world, node).into_iter().collect();
    addresses.extend(node.internal_ips());
    addresses.extend(["127.0.0.1", "::1"].map(|a| a.parse::<IpAddr>().unwrap()));
    let holds_underlay = plan.underlay.is_some_and(|a| addresses.contains(&a));
    Facts {
        underlay: holds_underlay.then(|| Underlay {
            link: uplink(),
            mtu: 1500,
        }),
        tunnel: (!plan.peers.is_empty()).then(tunnel),
        addresses,
        ipv6: true,
        exits: exits(interfaces(world, node), plan),
        ..Facts::default()
    }
}

/// The links that hold an egress address of the plan and not its family's default route.
fn exits(interfaces: &[NodeInterface], plan: &EgressPlanSpec) -> Vec<Exit> {
    let roles = plan.policies.iter().filter_map(|p| p.gateway.as_ref());
    let used: BTreeSet<IpAddr> = roles.flat_map(|g| g.addresses.clone()).collect();
    let exits = interfaces.iter().map(|interface| {
        let of_interface = interface.addresses.iter().copied();
        let by_it = |a: &IpAddr| used.contains(a) && main_link(interfaces, (*a).into()) != link_of(interface);
        let addresses: BTreeSet<IpAddr> = of_interface.filter(by_it).collect();
        let routes = [("0.0.0.0/0", "192.0.2.254"), ("::/0", "fe80::1")];
        let routes = routes.map(|(to, via)| (to.parse().unwrap(), Some(via.parse().unwrap())));
        Exit {
            link: link_of(interface),
            routes: routes
                .into_iter()
                .filter(|(to, _)| has_family(&addresses, to))
                .collect(),
            addresses,
            strict: None,
        }
    });
    exits.filter(|exit| !exit.addresses.is_empty()).collect()
}

fn has_family(addresses: &BTreeSet<IpAddr>, to: &IpNet) -> bool {
    addresses.iter().any(|a| a.is_ipv4() == to.addr().is_ipv4())
}

/// By which link the main table sends what leaves the node.
fn main_link(interfaces: &[NodeInterface], family: Family) -> Link {
    let by_default = interfaces.iter().find(|i| i.default_route.contains(&family));
    by_default.map_or_else(uplink, link_of)
}

fn link_of(interface: &NodeInterface) -> Link {
    let index = if interface.name == "eth0" { 2 } else { 3 };
    link(&interface.name, index)
}

/// The interface to the outside, under the tunnel.
pub fn uplink() -> Link {
    link("eth0", 2)
}

/// The tunnel's.
pub fn tunnel() -> Link {
    link(TUNNEL, 9)
}

/// A pod's.
pub fn veth() -> Link {
    link("pod0", 5)
}

fn link(name: &str, index: u32) -> Link {
    Link {
        name: name.into(),
        index,
    }
}

impl Host {
    /// Takes a packet through a hook.
    pub fn run(&self, hook: Hook, packet: &mut Packet) -> Result<(), Dropped> {
        let Some(ruleset) = &self.desired.ruleset else {
            return Ok(());
        };
        let table = Table {
            ruleset,
            local: &self.facts.addresses,
        };
        table.run(hook, packet)
    }

    /// By which link the main table sends what leaves the node for an address.
    pub fn main_link(&self, destination: IpAddr) -> Link {
        main_link(&self.interfaces, destination.into())
    }

    /// The link that holds an address.
    pub fn holder(&self, address: IpAddr) -> Link {
        let holder = self.interfaces.iter().find(|i| i.addresses.contains(&address));
        holder.map_or_else(uplink, link_of)
    }

    /// Looks a packet's way up: the local table first, then our rules, each with the longest prefix of its table.
    pub fn route(&self, packet: &Packet) -> Way {
        if self.facts.addresses.contains(&packet.destination) {
            return Way::Local;
        }
        let net = &self.desired.net;
        let mut rules: Vec<_> = net.rules.iter().collect();
        rules.sort_by_key(|r| r.priority);
        for rule in rules {
            if rule.family != Family::from(packet.destination) || packet.mark & rule.mask != rule.mark {
                continue;
            }
            let in_table = net.routes.iter().filter(|r| r.table == rule.table);
            let fitting = in_table.filter(|r| r.to.contains(&packet.destination));
            match fitting.max_by_key(|r| r.to.prefix_len()).map(|r| &r.kind) {
                Some(RouteKind::Tunnel { via }) => return Way::Tunnel(*via),
                Some(RouteKind::Link { link, .. }) => return Way::Link(link.clone()),
                Some(RouteKind::Unreachable) => return Way::Unreachable,
                Some(RouteKind::Throw) | None => {}
            }
        }
        Way::Main
    }
}
