//! A node's plan, and what it compiles to.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_agent::compile::compile;
use egressnat_agent::facts::{Facts, Underlay};
use egressnat_agent::model::Link;
use egressnat_agent::owned::{Numbers, TUNNEL};
use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{Family, NodeInterface};
use egressnat_operator::plan;
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
    let progress = Progress::of(existing, |written| Some(written) == planned.as_ref());
    let (facts, assumed) = facts(&spec, world.interfaces(node));
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
fn facts(spec: &EgressPlanSpec, interfaces: &[NodeInterface]) -> (Facts, Vec<String>) {
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
    assumed.extend(second_interfaces(spec, interfaces));
    let facts = Facts {
        underlay,
        tunnel: (!spec.peers.is_empty()).then(|| Link {
            name: TUNNEL.to_owned(),
            index: 2,
        }),
        addresses: addresses.chain(own).collect(),
        ipv6: true,
        ..Facts::default()
    };
    (facts, assumed)
}

/// Egress addresses whose way out depends on routes that are not known here.
fn second_interfaces(spec: &EgressPlanSpec, interfaces: &[NodeInterface]) -> Vec<String> {
    let roles = spec.policies.iter().filter_map(|p| p.gateway.as_ref());
    let mut found: Vec<String> = roles
        .flat_map(|role| &role.addresses)
        .filter_map(|address| {
            let holder = interfaces.iter().find(|i| i.addresses.contains(address))?;
            let default = holder.default_route.contains(&Family::from(*address));
            (!default).then(|| {
                format!(
                    "{address} leaves as the main table says; its interface {} has no default route of its \
                     family, and what is routed there is known to the agent only",
                    holder.name
                )
            })
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
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
        let mut spec = plan_of("edge").spec;
        let (facts, assumed) = facts(&spec, &[]);
        assert_eq!(facts.underlay.unwrap().link.name, "eth0");
        assert!(
            assumed.iter().any(|a| a.contains("has not reported")),
            "{assumed:?}"
        );

        spec.policies.retain(|p| p.id == 1);
        let eth1 = NodeInterface {
            name: "eth1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            default_route: Vec::new(),
        };
        let (_, assumed) = super::facts(&spec, &[eth1]);
        assert!(
            assumed.iter().any(|a| a.starts_with("192.0.2.1 leaves as")),
            "{assumed:?}"
        );
    }
}
