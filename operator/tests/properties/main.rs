//! What holds for every world: the planner against a slow and obvious model of the API's text, the order and
//! the history of changes, and plans that fit together.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod incremental;
mod rollout;
mod worlds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::Family;
use egressnat_operator::backlog::Backlog;
use egressnat_operator::plan::{Outcome, PolicyOutcome, plan};
use egressnat_operator::status;
use egressnat_operator::store::Store;
use egressnat_operator::world::World;
use proptest::prelude::*;

use worlds::{PodSeed, PolicySeed, Seeds, probes, seeds};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_planner_says_what_the_api_says(seeds in seeds()) {
        let outcome = plan(&seeds.world());
        for pod in &seeds.pods {
            for destination in probes() {
                prop_assert_eq!(
                    planned(&outcome, pod, destination),
                    expected(&seeds, pod, destination),
                    "{} to {}", pod.uid(), destination
                );
            }
            prop_assert_eq!(planned_ips(&outcome, pod), expected_ips(&seeds, pod));
        }
        for policy in &seeds.policies {
            let matched = seeds.pods.iter().filter(|p| seeds.in_force(policy) && seeds.selects(policy, p)).count();
            prop_assert_eq!(outcome.policies[&policy.name()].matched_pods, matched);
        }
    }

    #[test]
    fn what_a_policy_loses_is_what_others_win(seeds in seeds()) {
        let outcome = plan(&seeds.world());
        for policy in &seeds.policies {
            let lost = outcome.policies[&policy.name()].lost.iter();
            let lost: BTreeMap<String, (usize, BTreeSet<IpAddr>)> = lost
                .map(|l| {
                    let probes = probes().into_iter().filter(|p| l.ranges.iter().any(|r| r.contains(*p)));
                    (l.policy.clone(), (l.pods, probes.collect()))
                })
                .collect();
            prop_assert_eq!(lost, expected_losses(&seeds, policy), "{}", policy.name());
        }
    }

    #[test]
    fn the_order_of_changes_does_not_matter(
        (changes, shuffled) in seeds().prop_flat_map(|s| (Just(s.changes()), Just(s.changes()).prop_shuffle()))
    ) {
        let [a, b] = [changes, shuffled].map(|changes| {
            let mut store = Store::default();
            for change in changes {
                store.apply(change);
            }
            plan(store.world())
        });
        prop_assert_eq!(a, b);
    }

    #[test]
    fn the_order_of_gateways_does_not_matter(seeds in seeds()) {
        let [a, b] = [&seeds, &seeds.with_gateways_reversed()].map(|seeds| plan(&seeds.world()));
        prop_assert_eq!(a.plans, b.plans);
    }

    #[test]
    fn a_pod_goes_one_way_by_a_gateway_that_serves_it(seeds in seeds()) {
        let outcome = plan(&seeds.world());
        let node = |name: &str| seeds.nodes.iter().find(|n| n.name() == name);
        for policy in seeds.policies.iter().filter(|p| seeds.in_force(p)) {
            let made = &outcome.policies[&policy.name()];
            let gateways: Vec<&str> =
                made.gateways.iter().filter_map(|g| Some(g.gateway.as_ref()?.node.as_str())).collect();
            let affinity = policy.zone_affinity().unwrap_or("None");
            let mut users: BTreeMap<String, usize> = BTreeMap::new();
            for pod in seeds.pods.iter().filter(|p| seeds.selects(policy, p)) {
                let zone = node(&pod.node()).unwrap().zone();
                let near = |gateway: &str| zone.is_some() && node(gateway).unwrap().zone() == zone;
                let ready = |gateway: &str| node(gateway).unwrap().ready;
                let allowed: Vec<&str> =
                    gateways.iter().copied().filter(|g| affinity != "Require" || near(g)).collect();
                let Some(ways) = ways(&outcome, pod, &policy.name()) else {
                    continue;
                };
                prop_assert_eq!(ways.len(), 1, "{} by {:?}", pod.uid(), ways);
                let Some(used) = ways.into_iter().next().flatten() else {
                    let lacks = outcome.plans[&pod.node()].underlay.is_none() || allowed.is_empty();
                    prop_assert!(lacks, "{} has no way, but {allowed:?}", pod.uid());
                    continue;
                };
                *users.entry(used.clone()).or_default() += 1;
                prop_assert!(allowed.contains(&used.as_str()));
                prop_assert!(ready(&used) || !allowed.iter().any(|g| ready(g)), "{used} is not Ready");
                let best = allowed.iter().any(|g| near(g) && (ready(g) || !ready(&used)));
                prop_assert!(affinity != "Prefer" || near(&used) || !best, "{used} is in another zone");
            }
            for (node, users) in users {
                let of_node = made.gateways.iter().filter(|g| g.gateway.as_ref().is_some_and(|g| g.node == node));
                let counted: usize = of_node.map(|g| g.pods).sum();
                prop_assert!(counted >= users, "{node} has {users} pods at least, not {counted}");
            }
            prop_assert!(made.gateways.iter().map(|g| g.pods).sum::<usize>() <= made.matched_pods);
        }
    }

    #[test]
    fn the_history_of_changes_does_not_matter(before in seeds(), after in seeds()) {
        let mut store = Store::default();
        for change in before.changes().into_iter().chain(before.deletions()).chain(after.changes()) {
            store.apply(change);
        }
        prop_assert_eq!(plan(store.world()), plan(&after.world()));
    }

    #[test]
    fn lists_are_sorted_and_what_they_name_is_there(seeds in seeds()) {
        let outcome = plan(&seeds.world());
        for (node, spec) in &outcome.plans {
            prop_assert!(sorted(spec.peers.iter().map(|p| &p.node)));
            prop_assert!(sorted(spec.policies.iter().map(|p| p.id)));
            prop_assert!(sorted(spec.profiles.iter().map(|p| p.id)));
            prop_assert!(sorted(spec.pods.iter().map(|p| &p.uid)));
            prop_assert!(sorted(spec.cluster.iter()));
            prop_assert!(spec.peers.iter().all(|p| p.node != *node && sorted(p.ranges.iter())));
            let profiles: BTreeSet<u32> = spec.profiles.iter().map(|p| p.id).collect();
            let used: BTreeSet<u32> = spec.pods.iter().map(|p| p.profile).collect();
            prop_assert_eq!(&profiles, &used);
            let sources: BTreeSet<u16> =
                spec.policies.iter().filter(|p| p.source.is_some()).map(|p| p.id).collect();
            let named: BTreeSet<u16> =
                spec.profiles.iter().flat_map(|p| &p.destinations).map(|d| d.policy).collect();
            prop_assert_eq!(&sources, &named);
            for profile in &spec.profiles {
                prop_assert!(!profile.destinations.is_empty());
                prop_assert!(profile.destinations.windows(2).all(|d| d[0].range.last() < d[1].range.first()));
            }
        }
    }

    #[test]
    fn a_source_and_its_gateway_agree(seeds in seeds()) {
        let outcome = plan(&seeds.world());
        for (node, spec) in &outcome.plans {
            for policy in &spec.policies {
                let Some(gateway) = policy.source.as_ref().and_then(|s| s.gateway.as_ref()) else {
                    continue;
                };
                let there = &outcome.plans[gateway];
                let role = there.policies.iter().find(|p| p.id == policy.id).and_then(|p| p.gateway.clone());
                let addresses = role.expect("the gateway knows the policy").addresses;
                let families: Vec<Family> = addresses.iter().map(|a| Family::from(*a)).collect();
                prop_assert_eq!(&policy.source.as_ref().unwrap().families, &families);
                if gateway != node {
                    prop_assert_eq!(underlay_of_peer(spec, gateway), there.underlay);
                    prop_assert_eq!(underlay_of_peer(there, node), spec.underlay);
                    let ranges = &there.peers.iter().find(|p| p.node == *node).unwrap().ranges;
                    for ip in ips_using(spec, policy.id) {
                        prop_assert!(ranges.iter().any(|r| r.contains(&ip)), "{} of {} at {}", ip, node, gateway);
                    }
                }
            }
        }
    }

    #[test]
    fn a_settled_world_asks_for_nothing(seeds in seeds()) {
        let mut world = seeds.world();
        let first = plan(&world);
        settle(&mut world, &first);
        let second = plan(&world);
        prop_assert_eq!(&first, &second);
        let backlog = Backlog::new(&world);
        prop_assert!(backlog.waves().iter().all(Vec::is_empty));
        let now = worlds::time(1000);
        prop_assert!(status::due(backlog.policies(), &world, &backlog, now).is_empty());
    }

    #[test]
    fn ids_stay_and_are_never_those_of_another_policy(before in seeds(), after in seeds()) {
        let mut world = before.world();
        let first = plan(&world);
        settle(&mut world, &first);
        // Half of the policies go, others come; the plans that mention those that went are still there.
        let gone = before.policies.iter().step_by(2).map(|p| p.name());
        for name in gone {
            world.policies.remove(&name);
        }
        let newcomers = after.world().policies;
        world.policies.extend(newcomers.into_iter().map(|(name, p)| (format!("new-{name}"), p)));
        let second = plan(&world);
        let mentioned = first.plans.values().flat_map(|plan| &plan.policies);
        let old: BTreeMap<u16, &String> = mentioned.map(|p| (p.id, &p.name)).collect();
        let mut seen = BTreeSet::new();
        for (name, policy) in &second.policies {
            for id in ids(policy).into_values() {
                prop_assert!((1..=0x3fff).contains(&id) && seen.insert(id));
                prop_assert!(old.get(&id).is_none_or(|owner| *owner == name), "{} has the id of another", name);
            }
            if let Some(was) = first.policies.get(name) {
                prop_assert_eq!(ids(was), ids(policy));
            }
        }
    }
}

/// Which policy the model says a packet belongs to: the first, in order of precedence, of those in force that
/// select the pod and whose destinations, less their exclusions, contain the destination.
fn expected(seeds: &Seeds, pod: &PodSeed, destination: IpAddr) -> Option<String> {
    let mut policies: Vec<_> = seeds.policies.iter().filter(|p| seeds.in_force(p)).collect();
    policies.sort_by_key(|p| (Reverse(p.priority), p.created, p.name()));
    let first = policies
        .into_iter()
        .find(|p| seeds.selects(p, pod) && p.wants(destination));
    first.map(|p| p.name())
}

/// For each policy that wins where this one would be: the pods for which it does, and the destinations.
fn expected_losses(seeds: &Seeds, policy: &PolicySeed) -> BTreeMap<String, (usize, BTreeSet<IpAddr>)> {
    let mut losses: BTreeMap<String, (usize, BTreeSet<IpAddr>)> = BTreeMap::new();
    let selected = |pod: &&PodSeed| seeds.in_force(policy) && seeds.selects(policy, pod);
    for pod in seeds.pods.iter().filter(selected) {
        let mut winners: BTreeSet<String> = BTreeSet::new();
        for probe in probes().into_iter().filter(|probe| policy.wants(*probe)) {
            let winner = expected(seeds, pod, probe).unwrap();
            if winner != policy.name() {
                losses.entry(winner.clone()).or_default().1.insert(probe);
                winners.insert(winner);
            }
        }
        for winner in winners {
            losses.entry(winner).or_default().0 += 1;
        }
    }
    losses
}

/// The addresses that are the pod's own: a pod that is being deleted yields to one that is not, then the older
/// to the newer.
fn expected_ips(seeds: &Seeds, pod: &PodSeed) -> Option<Vec<IpAddr>> {
    let captured = probes().iter().any(|d| expected(seeds, pod, *d).is_some());
    let owner = |ip: &IpAddr| {
        let live = seeds.pods.iter().filter(|p| p.is_live() && p.ips().contains(ip));
        live.min_by_key(|p| (p.deleting, Reverse(p.created), p.uid()))
            .map(|p| p.uid())
    };
    let own = pod.ips().into_iter().filter(|ip| owner(ip) == Some(pod.uid()));
    captured.then(|| own.collect())
}

/// The ids of a policy and of its gateways, by the key of an entry of `egressGateways`.
fn ids(policy: &PolicyOutcome) -> BTreeMap<Option<String>, u16> {
    let own = policy.id.map(|id| (None, id));
    let entries = policy
        .gateways
        .iter()
        .filter_map(|g| Some((Some(g.key?.to_string()), g.id)));
    own.into_iter().chain(entries).collect()
}

/// The gateways that a pod's node sends its packets of a policy to: `None` among them where they meet
/// `noGateway`. `None` at all where another policy has all that the pod could send.
fn ways(outcome: &Outcome, pod: &PodSeed, policy: &str) -> Option<BTreeSet<Option<String>>> {
    let spec = outcome.plans.get(&pod.node())?;
    let entry = spec.pods.iter().find(|p| p.uid == pod.uid())?;
    let profile = spec.profiles.iter().find(|p| p.id == entry.profile)?;
    let used: BTreeSet<u16> = profile.destinations.iter().map(|d| d.policy).collect();
    let of_policy = spec
        .policies
        .iter()
        .filter(|p| p.name == policy && used.contains(&p.id));
    let ways: BTreeSet<Option<String>> = of_policy
        .map(|p| p.source.as_ref().unwrap().gateway.clone())
        .collect();
    (!ways.is_empty()).then_some(ways)
}

fn planned(outcome: &Outcome, pod: &PodSeed, destination: IpAddr) -> Option<String> {
    let spec = outcome.plans.get(&pod.node())?;
    let entry = spec.pods.iter().find(|p| p.uid == pod.uid())?;
    let profile = spec.profiles.iter().find(|p| p.id == entry.profile)?;
    let id = profile
        .destinations
        .iter()
        .find(|d| d.range.contains(destination))?
        .policy;
    spec.policies.iter().find(|p| p.id == id).map(|p| p.name.clone())
}

fn planned_ips(outcome: &Outcome, pod: &PodSeed) -> Option<Vec<IpAddr>> {
    let spec = outcome.plans.get(&pod.node())?;
    spec.pods
        .iter()
        .find(|p| p.uid == pod.uid())
        .map(|p| p.ips.clone())
}

fn underlay_of_peer(spec: &EgressPlanSpec, peer: &str) -> Option<IpAddr> {
    spec.peers.iter().find(|p| p.node == peer).map(|p| p.underlay)
}

/// The addresses of the pods of a plan that use a policy.
fn ips_using(spec: &EgressPlanSpec, id: u16) -> Vec<IpAddr> {
    let uses = |profile: u32| {
        let profile = spec.profiles.iter().find(|p| p.id == profile).unwrap();
        profile.destinations.iter().any(|d| d.policy == id)
    };
    spec.pods
        .iter()
        .filter(|p| uses(p.profile))
        .flat_map(|p| p.ips.clone())
        .collect()
}

/// Makes the world as it is when all is written and every agent has done its work.
fn settle(world: &mut World, outcome: &Outcome) {
    worlds::program(world, outcome);
    let backlog = Backlog::new(world);
    for (name, status) in status::due(backlog.policies(), world, &backlog, worlds::time(0)) {
        world.policies.get_mut(&name).unwrap().status = status;
    }
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> bool {
    let items: Vec<T> = items.collect();
    items.windows(2).all(|w| w[0] < w[1])
}
