//! A node's kernel as its agent would make it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_agent::compile::compile;
use egressnat_agent::facts::{Facts, Underlay};
use egressnat_agent::model::{Desired, Hook, Link, RouteKind};
use egressnat_agent::owned::{Numbers, TUNNEL};
use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;
use egressnat_operator::plan::Outcome;

use crate::gateway::held;
use crate::ruleset::{Dropped, Packet, Table};
use crate::world::{Node, World};

/// A node.
pub struct Host {
    pub name: String,
    pub plan: EgressPlanSpec,
    pub facts: Facts,
    pub desired: Desired,
}

/// Where a node sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the tunnel to this next hop.
    Tunnel(IpAddr),
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
        ..Facts::default()
    }
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
            if let Some(route) = fitting.max_by_key(|r| r.to.prefix_len())
                && let RouteKind::Tunnel { via } = route.kind
            {
                return Way::Tunnel(via);
            }
        }
        Way::Main
    }
}
