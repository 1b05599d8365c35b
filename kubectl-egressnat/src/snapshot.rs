//! What was read of the cluster, as the planner takes it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_operator::plan::cluster;
use egressnat_operator::ranges;
use egressnat_operator::world::{MasqueradeConfig, World};

use crate::services::Exposed;
use crate::words;

/// A [`World`], and what its parsed policies no longer tell.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the planner plans from.
    pub world: World,
    /// The specs as they were written, by policy name; those that cannot be read are left out.
    pub specs: BTreeMap<String, EgressNATPolicySpec>,
    /// Addresses of Services beside those of the cluster's ranges.
    pub services: Vec<Exposed>,
}

impl Snapshot {
    /// Of what the API server shows.
    pub fn new(
        mut world: World,
        specs: BTreeMap<String, EgressNATPolicySpec>,
        services: Vec<Exposed>,
    ) -> Self {
        read_back_ranges(&mut world);
        world.config.masquerade = read_back_masquerade(&world);
        Self {
            world,
            specs,
            services,
        }
    }
}

/// Ranges that only the operator's command line names stand in the plans that it has written.
fn read_back_ranges(world: &mut World) {
    let known = cluster::ranges(world);
    let written = world.plans.values().flat_map(|p| &p.spec.cluster);
    let more = ranges::subtract(&ranges::merge(written.copied()), &known);
    world.config.cluster_cidrs = more.iter().flat_map(words::nets).collect();
}

/// What only the operator's command line says of the masquerade.
fn read_back_masquerade(world: &World) -> Option<MasqueradeConfig> {
    let mut written = world.plans.values().filter_map(|p| p.spec.masquerade.as_ref());
    let except = &written.next()?.except;
    let more = ranges::subtract(except, &cluster::ranges(world));
    let link_local = IpAddr::from([169, 254, 0, 0]);
    Some(MasqueradeConfig {
        except: more.iter().flat_map(words::nets).collect(),
        link_local: !except.iter().any(|range| range.contains(link_local)),
    })
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn ranges_of_the_operators_command_line_are_read_from_its_plans() {
        let world = testing::snapshot(
            r#"
kind: Node
metadata: {name: a, uid: a}
spec: {podCIDRs: [10.1.0.0/24]}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressPlan
metadata: {name: a, uid: a, generation: 1}
spec: {cluster: [10.1.0.0-10.1.0.255, 172.30.0.0-172.30.1.255]}
"#,
        )
        .world;
        let more: Vec<String> = world
            .config
            .cluster_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(more, ["172.30.0.0/23"]);
    }

    #[test]
    fn a_masquerade_is_planned_as_the_operators_plans_have_it() {
        let world = |masquerade: &str| {
            let yaml = format!(
                r#"
kind: Node
metadata: {{name: a, uid: a}}
spec: {{podCIDRs: [10.1.0.0/24]}}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressPlan
metadata: {{name: a, uid: a, generation: 1}}
spec: {{{masquerade}}}
"#
            );
            testing::snapshot(&yaml).world
        };
        assert_eq!(world("").config.masquerade, None);
        let except = [
            "10.1.0.0-10.1.0.255, 127.0.0.0-127.255.255.255",
            "203.0.113.0-203.0.113.255, 224.0.0.0-239.255.255.255, 255.255.255.255-255.255.255.255",
            "\"::1-::1\", \"ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\"",
        ];
        let except = except.join(", ");
        let world = world(&format!(
            "masquerade: {{sources: [10.1.0.0/24], except: [{except}]}}"
        ));
        assert!(world.config.masquerade.as_ref().unwrap().link_local);
        let planned = egressnat_operator::plan::plan(&world).plans;
        assert_eq!(planned["a"].masquerade, world.plans["a"].spec.masquerade);
    }
}
