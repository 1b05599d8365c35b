//! What was read of the cluster, as the planner takes it.

use std::collections::BTreeMap;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_operator::plan::cluster;
use egressnat_operator::ranges;
use egressnat_operator::world::World;

use crate::words;

/// A [`World`], and what its parsed policies no longer tell.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the planner plans from.
    pub world: World,
    /// The specs as they were written, by policy name; those that cannot be read are left out.
    pub specs: BTreeMap<String, EgressNATPolicySpec>,
}

impl Snapshot {
    /// Of what the API server shows.
    pub fn new(mut world: World, specs: BTreeMap<String, EgressNATPolicySpec>) -> Self {
        read_back_ranges(&mut world);
        Self { world, specs }
    }
}

/// Ranges that only the operator's command line names stand in the plans that it has written.
fn read_back_ranges(world: &mut World) {
    let known = cluster::ranges(world);
    let written = world.plans.values().flat_map(|p| &p.spec.cluster);
    let more = ranges::subtract(&ranges::merge(written.copied()), &known);
    world.config.cluster_cidrs = more.iter().flat_map(words::nets).collect();
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
}
