//! A node's plan, and what it compiles to.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_agent::compile::compile;
use egressnat_agent::facts::{Exit, Facts, Underlay};
use egressnat_agent::model::Link;
use egressnat_agent::owned::{Numbers, TUNNEL};
use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Family, NextHop, NodeExit, NodeInterface};
use egressnat_operator::plan;
use ipnet::IpNet;
use serde::Serialize;

use crate::error::Error;
use crate::progress::Progress;
use crate::snapshot::Snapshot;

/// A node's plan, and what it compiles to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    /// The node.
    pub node: String,
    /// How far the node is with the plan that the operator would write now.
    #[serde(flatten)]
    pub progress: Progress,
    /// The plan as it is written, or as it would be where there is none.
    pub spec: EgressPlanSpec,
    /// What is not known here of the node, and was assumed.
    pub assumed: Vec<String>,
    /// The plan in nft and ip syntax, or why it cannot be compiled.
    pub compiled: String,
}

/// MTU of an interface of which only the name is known.
const MTU: u32 = 1500;

/// The plan of `node`; `None` where the cluster has no such node.
pub fn node_plan(snapshot: &Snapshot, node: &str) -> Option<NodePlan> {
    let world = &snapshot.world;
    let existing = world.plans.get(node);
    let planned = plan::plan(world).plans.remove(node);
    let spec = existing.map(|p| p.spec.clone()).or_else(|| planned.clone())?;
    let progress = Progress::of(existing, |written| {
        // The ids that it may still use are the operator's own note.
        let retired = written.retired.clone();
        planned.as_ref().is_some_and(|planned| {
            EgressPlanSpec {
                retired,
                ..planned.clone()
            } == *written
        })
    });
    let (facts, assumed) = facts(
        &spec,
        world.interfaces(node),
        existing.map_or(&[], |p| &p.status.exits),
    );
    let compiled = match compile(&spec, node, &facts, &Numbers::default()) {
        Ok(desired) => desired.to_string(),
        Err(error) => format!("# {}: {error}\n", error.category()),
    };
    Some(NodePlan {
        node: node.to_owned(),
        progress,
        spec,
        assumed,
        compiled,
    })
}

/// What is known of the node, as far as its agent has reported it, and what had to be assumed.
fn facts(spec: &EgressPlanSpec, interfaces: &[NodeInterface], reported: &[NodeExit]) -> (Facts, Vec<String>) {
    let mut assumed = vec![
        "the agent's numbers (marks, tables, port, VNI) are the defaults".to_owned(),
        "gateways are numbered anew; an agent keeps the numbers that are in use".to_owned(),
    ];
    let addresses = interfaces.iter().flat_map(|i| &i.addresses).copied();
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let underlay = spec.underlay.map(|address| {
        let holder = interfaces.iter().find(|i| i.addresses.contains(&address));
        let name = match holder {
            Some(interface) => interface.name.clone(),
            None => {
                assumed.push(format!(
                    "{address} is on eth0: the agent has not reported an interface with it"
                ));
                "eth0".into()
            }
        };
        assumed.push(format!("the MTU of {name} is {MTU}"));
        Underlay {
            link: Link { name, index: 1 },
            mtu: MTU,
        }
    });
    assumed.push("the node does IPv6".into());
    if spec.masquerade.is_some() {
        assumed.push("nobody else masquerades there: condition Masquerade of the EgressPlan tells".into());
    }
    let exits = exits(reported);
    assumed.extend(exits.iter().map(|exit| {
        format!(
            "by {} there are no routes but the default; its agent knows others, and makes its rp_filter loose where \
             need be",
            exit.link.name
        )
    }));
    let facts = Facts {
        underlay,
        tunnel: (!spec.peers.is_empty()).then(|| Link {
            name: TUNNEL.to_owned(),
            index: 2,
        }),
        addresses: addresses.chain(own).collect(),
        ipv6: true,
        exits,
        ..Facts::default()
    };
    (facts, assumed)
}

/// The exits that the agent reports, with their default routes.
fn exits(reported: &[NodeExit]) -> Vec<Exit> {
    let route = |hop: &NextHop| {
        let everywhere = match hop.family {
            Family::IPv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::IPv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Some((IpNet::new(everywhere, 0).ok()?, hop.via))
    };
    let exit = |(exit, index): (&NodeExit, u32)| Exit {
        link: Link {
            name: exit.interface.clone(),
            index,
        },
        addresses: exit.addresses.iter().copied().collect(),
        routes: exit.next_hops.iter().filter_map(route).collect(),
        strict: None,
    };
    reported.iter().zip(3..).map(exit).collect()
}

impl NodePlan {
    /// For people: the plan as YAML, then what it compiles to.
    pub fn text(&self) -> Result<String, Error> {
        let spec = serde_yaml_ng::to_string(&self.spec).map_err(|e| Error::Format(e.to_string()))?;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# EgressPlan of node {}: {}", self.node, self.progress);
        let _ = write!(text, "{spec}\n# Compiled, where");
        for assumption in &self.assumed {
            let _ = write!(text, "\n# - {assumption}");
        }
        let _ = write!(text, "\n{}", self.compiled);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn plan_of(node: &str) -> NodePlan {
        let world = include_str!("../../testdata/explain/world.yaml");
        node_plan(&testing::snapshot(world), node).unwrap()
    }

    #[test]
    fn a_plan_is_shown_as_written_and_as_the_kernel_takes_it() {
        let plan = plan_of("edge");
        assert_eq!(
            plan.progress,
            Progress::NotWritten,
            "the test's plan is not all that the planner says"
        );
        assert_eq!(plan.spec.policies.len(), 2);
        let text = plan.text().unwrap();
        for part in [
            "# EgressPlan of node edge: not yet",
            "underlay: 172.18.0.1",
            "- the MTU of eth0 is 1500",
            "dev eth0 local 172.18.0.1",
            "table inet egressnat {",
            "0x00010000 : 192.0.2.1,",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains("eth0: the agent has not reported"), "{text}");
    }

    #[test]
    fn a_node_that_is_not_there_has_no_plan() {
        let world = include_str!("../../testdata/explain/world.yaml");
        assert_eq!(node_plan(&testing::snapshot(world), "gone"), None);
    }

    #[test]
    fn what_is_assumed_is_said() {
        let spec = plan_of("edge").spec;
        let (facts, assumed) = facts(&spec, &[], &[]);
        assert_eq!(facts.underlay.unwrap().link.name, "eth0");
        assert!(
            assumed.iter().any(|a| a.contains("has not reported")),
            "{assumed:?}"
        );

        let exit = NodeExit {
            interface: "eth1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            next_hops: Vec::new(),
        };
        let (_, assumed) = super::facts(&spec, &[], &[exit]);
        assert!(
            assumed
                .iter()
                .any(|a| a.starts_with("by eth1 there are no routes")),
            "{assumed:?}"
        );
    }

    /// As the agent's own goldens have it: a mark, a rule and a table of its own.
    #[test]
    fn an_address_on_a_second_interface_leaves_by_it() {
        let world = include_str!("../../testdata/explain/world.yaml");
        let mut snapshot = testing::snapshot(world);
        let exit = |next_hops| NodeExit {
            interface: "eth1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            next_hops,
        };
        let mut compiled = |exit: NodeExit| {
            snapshot.world.plans.get_mut("edge").unwrap().status.exits = vec![exit];
            node_plan(&snapshot, "edge").unwrap().compiled
        };
        let router = NextHop {
            family: Family::IPv4,
            via: Some("192.0.2.254".parse().unwrap()),
        };
        let text = compiled(exit(vec![router]));
        for part in ["default via 192.0.2.254 dev eth1", "oif \"eth1\" goto out"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let text = compiled(exit(Vec::new()));
        for part in ["unreachable default", "# no IPv4 next hop by eth1"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
