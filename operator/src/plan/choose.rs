//! Which of a policy's gateways a pod uses.
//!
//! Rendezvous hashing: every pair of a pod's uid and an entry's key has a number that nothing else has a part
//! in, and the pod uses the entry with the highest. So pods spread evenly; an entry that goes moves only its
//! own pods, each to the next of its numbers; one that comes takes a share from each of the others; and
//! neither the entries' order nor the nodes behind them matter.

use egressnat_crds::policy::ZoneAffinity;

use super::gateway::Gateway;
use super::policies::{InForce, Slot};
use crate::hash::fnv1a;

/// The slot of `policy` that the pod with this uid uses, whose node is in `zone`: an index into `slots`.
///
/// One that is ready goes before one that is not, and under `Prefer` one of the pod's zone before another. If
/// none can serve the pod it has a slot all the same, the one that it comes back to.
pub fn slot(policy: &InForce, slots: &[Slot], uid: &str, zone: Option<&str>) -> usize {
    let first = policy.slots.start;
    if policy.slots.len() == 1 {
        return first;
    }
    let affinity = policy.spec.zone_affinity;
    let uid = fnv1a(uid.bytes());
    let rank = |index: &usize| {
        let slot = &slots[*index];
        let gateway = serving(slot, affinity, zone);
        let ready = gateway.is_some_and(|g| g.ready);
        let near = affinity == ZoneAffinity::Prefer && gateway.is_some_and(|g| is_in(g, zone));
        (gateway.is_some(), ready, near, slot.key.map(|key| key.with(uid)))
    };
    policy.slots.clone().max_by_key(rank).unwrap_or(first)
}

/// The gateway of a slot, for pods of nodes in `zone`: under `Require` there is none in another zone.
pub fn serving<'a>(slot: &'a Slot, affinity: ZoneAffinity, zone: Option<&str>) -> Option<&'a Gateway> {
    let gateway = slot.resolution.gateway.as_ref();
    gateway.filter(|g| affinity != ZoneAffinity::Require || is_in(g, zone))
}

fn is_in(gateway: &Gateway, zone: Option<&str>) -> bool {
    zone.is_some() && gateway.zone.as_deref() == zone
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::ids;
    use crate::plan::policies::Policies;
    use crate::testing;
    use crate::valid::ValidPolicy;
    use crate::world::{PolicySpec, World};

    const PODS: usize = 4000;

    /// Nodes of which number `n` has label `n: n` and is in zone `z0`, `z1`, `z0` and so on, and a policy with
    /// one gateway for each of `entries`, by that label.
    fn world(entries: &[usize], affinity: &str) -> World {
        let node = |n: usize| {
            format!(
                "{{kind: Node, metadata: {{name: node-{n}, uid: node-{n}, \
                  labels: {{n: '{n}', topology.kubernetes.io/zone: z{}}}}}, \
                  status: {{addresses: [{{type: InternalIP, address: 172.18.0.{n}}}], \
                  conditions: [{{type: Ready, status: 'True'}}]}}}}",
                n % 2
            )
        };
        let entry = |n: &usize| format!("{{nodeSelector: {{matchLabels: {{n: '{n}'}}}}}}");
        let entries: Vec<String> = entries.iter().map(entry).collect();
        let policy = format!(
            "{{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, metadata: {{name: p, uid: p}}, \
              spec: {{selectors: [{{podSelector: {{}}}}], egressGateways: [{}], zoneAffinity: {affinity}}}}}",
            entries.join(", ")
        );
        let documents: Vec<String> = (1..=9).map(node).chain([policy]).collect();
        testing::world(&documents.join("\n---\n"))
    }

    fn fail(world: &mut World, n: usize) {
        world.nodes.get_mut(&format!("node-{n}")).unwrap().ready = false;
    }

    /// Uids as the API server makes them, the same in every run.
    fn uid(n: usize) -> String {
        let (a, b) = (crate::hash::mix(n as u64), crate::hash::mix(!(n as u64)));
        let hex = format!("{a:016x}{b:016x}");
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// The node that each of many pods uses, whose node is in `zone`; `None` where none may serve it.
    fn used(world: &World, zone: Option<&str>) -> Vec<Option<String>> {
        let ids = ids::assign(world, &Default::default());
        let all = Policies::of(world, &ids);
        let used = |n: usize| {
            let slot = slot(&all.policies[0], &all.slots, &uid(n), zone);
            all.gateway_of(slot, zone).map(|g| g.node.clone())
        };
        (0..PODS).map(used).collect()
    }

    fn shares(used: &[Option<String>]) -> BTreeMap<&str, usize> {
        let mut shares = BTreeMap::new();
        for node in used {
            *shares.entry(node.as_deref().unwrap_or("-")).or_default() += 1;
        }
        shares
    }

    /// The pods whose gateway is another, as pairs of the old one and the new one.
    fn moved<'a>(before: &'a [Option<String>], after: &'a [Option<String>]) -> Vec<(&'a str, &'a str)> {
        let name = |node: &'a Option<String>| node.as_deref().unwrap_or("-");
        let pairs = before.iter().zip(after).map(|(b, a)| (name(b), name(a)));
        pairs.filter(|(before, after)| before != after).collect()
    }

    #[test]
    fn pods_spread_evenly() {
        for n in 2..=8usize {
            let entries: Vec<usize> = (1..=n).collect();
            let used = used(&world(&entries, "None"), None);
            let shares = shares(&used);
            let expected = PODS as f64 / n as f64;
            let chi_square: f64 = shares
                .values()
                .map(|share| (*share as f64 - expected).powi(2) / expected)
                .sum();
            // Of an even spread, one in 1000 has a higher sum than 24.3 with 7 degrees of freedom.
            println!("{n} gateways: chi square {chi_square:.1}, shares {shares:?}");
            assert_eq!(shares.len(), n);
            assert!(
                chi_square < 24.3,
                "{n} gateways: chi square {chi_square}, shares {shares:?}"
            );
        }
    }

    #[test]
    fn an_entry_that_goes_moves_its_own_pods_and_one_that_comes_takes_its_share() {
        for n in 2..=8usize {
            let with: Vec<usize> = (1..=n).collect();
            for changed in 1..=n {
                let without: Vec<usize> = with.iter().copied().filter(|i| *i != changed).collect();
                let (with, without) = (
                    used(&world(&with, "None"), None),
                    used(&world(&without, "None"), None),
                );
                let name = format!("node-{changed}");
                let moved = moved(&without, &with);
                assert!(
                    moved.iter().all(|(_, to)| *to == name),
                    "all that move go to {name}, and come from it when it goes"
                );
                let share = moved.len() as f64 / PODS as f64;
                let even = 1.0 / n as f64;
                println!("{name} of {n}: moved {share:.3}, even share {even:.3}");
                assert!(
                    (share - even).abs() < 0.03,
                    "{name} of {n} moved {share:.3} of the pods; its even share is {even:.3}"
                );
            }
        }
    }

    #[test]
    fn the_order_of_the_entries_moves_no_pod() {
        let [forward, backward] = [[1, 2, 3, 4], [4, 2, 3, 1]].map(|e| used(&world(&e, "None"), None));
        assert_eq!(forward, backward);
    }

    #[test]
    fn another_node_behind_an_entry_moves_no_pod_to_another_entry() {
        let before = world(&[1, 2, 3], "None");
        let mut after = before.clone();
        let label = |world: &mut World, node: &str, value: &str| {
            let node = world.nodes.get_mut(node).unwrap();
            node.labels.insert("n".into(), value.into());
        };
        label(&mut after, "node-2", "none");
        label(&mut after, "node-9", "2");
        let (before, after) = (used(&before, None), used(&after, None));
        let moved = moved(&before, &after);
        assert_eq!(moved.len(), shares(&before)["node-2"]);
        assert!(moved.iter().all(|pair| *pair == ("node-2", "node-9")));
    }

    #[test]
    fn one_that_is_not_ready_is_left_out_until_all_are() {
        let mut world = world(&[1, 2, 3], "None");
        let before = used(&world, None);
        fail(&mut world, 1);
        let after = used(&world, None);
        assert!(!shares(&after).contains_key("node-1"));
        assert!(moved(&before, &after).iter().all(|(from, _)| *from == "node-1"));
        fail(&mut world, 2);
        fail(&mut world, 3);
        assert_eq!(used(&world, None), before, "as if all were");
    }

    #[test]
    fn zone_affinity_says_which_gateways_serve_a_zone() {
        // Nodes 2 and 4 are in z0, 1 and 3 in z1.
        let all: &[&str] = &["node-1", "node-2", "node-3", "node-4"];
        for (affinity, zone, failed, nodes) in [
            ("None", Some("z0"), &[][..], all),
            ("Prefer", Some("z0"), &[], &["node-2", "node-4"]),
            ("Prefer", Some("z1"), &[], &["node-1", "node-3"]),
            ("Prefer", Some("elsewhere"), &[], all),
            ("Prefer", None, &[], all),
            ("Prefer", Some("z0"), &[2], &["node-4"]),
            ("Prefer", Some("z0"), &[2, 4], &["node-1", "node-3"]),
            ("Prefer", Some("z0"), &[1, 2, 3, 4], &["node-2", "node-4"]),
            ("Require", Some("z0"), &[], &["node-2", "node-4"]),
            ("Require", Some("z0"), &[2], &["node-4"]),
            ("Require", Some("z0"), &[2, 4], &["node-2", "node-4"]),
            ("Require", Some("elsewhere"), &[], &["-"]),
            ("Require", None, &[], &["-"]),
        ] {
            let mut world = world(&[1, 2, 3, 4], affinity);
            for n in failed {
                fail(&mut world, *n);
            }
            let used = used(&world, zone);
            let found: Vec<&str> = shares(&used).into_keys().collect();
            assert_eq!(found, nodes, "{affinity} in {zone:?} without {failed:?}");
        }
    }

    /// The address that each of many pods uses, of a policy with these addresses. Nodes 1 to 9 hold one each.
    fn addresses_used(numbers: &[usize]) -> Vec<Option<String>> {
        let mut world = world(&[1], "None");
        let addresses: Vec<String> = numbers.iter().map(|n| format!("172.18.0.{n}")).collect();
        let spec = format!(
            "{{selectors: [{{podSelector: {{}}}}], egressSourceIPs: [{}]}}",
            addresses.join(", ")
        );
        let valid = ValidPolicy::parse(&serde_yaml_ng::from_str(&spec).unwrap()).unwrap();
        world.policies.get_mut("p").unwrap().spec = PolicySpec::Valid(valid);
        used(&world, None)
    }

    #[test]
    fn an_address_that_is_added_moves_its_share_only_also_to_a_single_one() {
        for n in 1..=8usize {
            let before: Vec<usize> = (1..=n).collect();
            let after: Vec<usize> = (1..=n + 1).rev().collect();
            let (before, after) = (addresses_used(&before), addresses_used(&after));
            let moved = moved(&before, &after);
            let new = format!("node-{}", n + 1);
            assert!(
                moved.iter().all(|(_, to)| *to == new),
                "all that move go to {new}"
            );
            let (share, even) = (moved.len() as f64 / PODS as f64, 1.0 / (n + 1) as f64);
            println!("to {n} addresses one more: moved {share:.3}, even share {even:.3}");
            assert!(
                (share - even).abs() < 0.03,
                "{new} moved {share:.3}; its even share is {even:.3}"
            );
        }
    }

    #[test]
    fn an_address_that_no_node_holds_is_passed_over() {
        let held = addresses_used(&[1, 2, 3]);
        let with_another = addresses_used(&[1, 77, 2, 3]);
        assert_eq!(held, with_another);
    }

    #[test]
    fn an_entry_without_a_node_is_passed_over() {
        let mut world = world(&[1, 2, 3], "None");
        let before = used(&world, None);
        world.nodes.remove("node-1");
        let after = used(&world, None);
        assert!(moved(&before, &after).iter().all(|(from, _)| *from == "node-1"));
        assert_eq!(
            shares(&after).into_keys().collect::<Vec<_>>(),
            ["node-2", "node-3"]
        );
    }
}
