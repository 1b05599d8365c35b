//! What policies lose to one another: destinations of a policy at which another comes first, for pods that
//! both select.

use std::collections::{BTreeMap, BTreeSet};

use egressnat_crds::interval::Interval;
use egressnat_crds::policy::LostTo;

use super::policies::InForce;
use super::profiles::Layers;
use crate::ranges;

/// What a policy loses to one other policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The policy that comes first.
    pub policy: String,
    /// For how many pods it does.
    pub pods: usize,
    /// The destinations that it takes, as [`ranges::merge`] gives them.
    pub ranges: Vec<Interval>,
}

/// Sets of policies that select the same pods, as indexes in order of precedence.
pub type Sets = BTreeMap<Vec<usize>, Set>;

/// What is known of such a set.
#[derive(Debug)]
pub struct Set {
    /// Their destinations side by side.
    pub layers: Layers,
    /// How many pods just these policies select.
    pub pods: usize,
}

/// What each of the policies `of` loses, by its index, to each that comes first somewhere, in order of precedence.
pub fn of_policies(sets: &Sets, policies: &[InForce], of: &BTreeSet<usize>) -> BTreeMap<usize, Vec<Lost>> {
    let mut losses: BTreeMap<(usize, usize), (usize, BTreeSet<Interval>)> = BTreeMap::new();
    let concerned = |set: &[usize]| set.len() > 1 && set[1..].iter().any(|policy| of.contains(policy));
    for (set, known) in sets.iter().filter(|(set, _)| concerned(set)) {
        for (first, won) in known.layers.by_layer() {
            for loser in set[first + 1..].iter().filter(|policy| of.contains(policy)) {
                let lost = ranges::intersect(&policies[*loser].spec.destinations, &won);
                if !lost.is_empty() {
                    let (pods, ranges) = losses.entry((*loser, set[first])).or_default();
                    *pods += known.pods;
                    ranges.extend(lost);
                }
            }
        }
    }
    let mut by_loser: BTreeMap<usize, Vec<Lost>> = BTreeMap::new();
    for ((loser, winner), (pods, lost)) in losses {
        by_loser.entry(loser).or_default().push(Lost {
            policy: policies[winner].name.to_owned(),
            pods,
            ranges: ranges::merge(lost),
        });
    }
    by_loser
}

/// As a policy's status says it: the first few policies with the first few ranges, and how many more policies
/// there are.
pub fn status(lost: &[Lost]) -> (Vec<LostTo>, u32) {
    const SHOWN: usize = 16;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let shown = lost.iter().take(SHOWN).map(|lost| LostTo {
        policy: lost.policy.clone(),
        pods: count(lost.pods),
        ranges: lost.ranges.iter().copied().take(SHOWN).collect(),
        more_ranges: count(lost.ranges.len().saturating_sub(SHOWN)),
    });
    (shown.collect(), count(lost.len().saturating_sub(SHOWN)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog::Backlog;
    use crate::plan::{Outcome, plan};
    use crate::{status, testing};

    const NODE: &str = "\
kind: Node
metadata: {name: node, uid: node}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}]}
";

    fn pod(name: &str, app: &str) -> String {
        format!(
            "---\nkind: Pod\nmetadata: {{namespace: default, name: {name}, uid: {name}, labels: {{app: {app}}}}}\n\
             spec: {{nodeName: node}}\nstatus: {{phase: Running}}\n"
        )
    }

    fn policy(name: &str, priority: i32, apps: &str, cidrs: &str) -> String {
        format!(
            "---\napiVersion: egressnat.io/v1alpha1\nkind: EgressNATPolicy\n\
             metadata: {{name: {name}, uid: {name}, generation: 1}}\n\
             spec: {{priority: {priority}, egressSourceIP: 172.18.0.1, destinationCIDRs: [{cidrs}], \
             selectors: [{{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{apps}]}}]}}}}]}}\n"
        )
    }

    fn made(objects: &[String]) -> Outcome {
        plan(&testing::world(&format!("{NODE}{}", objects.concat())))
    }

    fn lost(outcome: &Outcome, policy: &str) -> Vec<(String, usize, Vec<String>)> {
        let lost = outcome.policies[policy].lost.iter();
        let texts = |ranges: &[Interval]| ranges.iter().map(ToString::to_string).collect();
        lost.map(|l| (l.policy.clone(), l.pods, texts(&l.ranges)))
            .collect()
    }

    #[test]
    fn the_loser_knows_the_winner_the_pods_and_the_ranges() {
        let outcome = made(&[
            pod("web-1", "web"),
            pod("web-2", "web"),
            pod("db", "db"),
            policy("high", 300, "web", "10.1.0.0/16"),
            policy(
                "middle",
                200,
                "'web', 'db'",
                "10.1.0.0/17, 10.2.0.0/16, 192.0.2.0/24",
            ),
            policy("low", 100, "'web', 'db'", "10.0.0.0/8"),
        ]);
        let range = |r: &str| vec![r.to_owned()];
        assert_eq!(lost(&outcome, "high"), []);
        assert_eq!(
            lost(&outcome, "middle"),
            [("high".into(), 2, range("10.1.0.0-10.1.127.255"))]
        );
        // For the web pods, middle's share of 10.1.0.0/16 is high's already.
        let (to_high, to_middle) = (
            range("10.1.0.0-10.1.255.255"),
            vec![
                "10.1.0.0-10.1.127.255".to_owned(),
                "10.2.0.0-10.2.255.255".to_owned(),
            ],
        );
        assert_eq!(
            lost(&outcome, "low"),
            [("high".into(), 2, to_high), ("middle".into(), 3, to_middle)]
        );
        let accepted = &outcome.policies["low"].accepted;
        assert!(accepted.holds);
        assert!(
            accepted.message.ends_with(
                "other policies come first at some of its destinations: high (2 pods), middle (3 pods)"
            ),
            "{}",
            accepted.message
        );
        assert_eq!(outcome.policies["low"].degraded, []);
    }

    #[test]
    fn policies_that_share_destinations_but_no_pods_lose_nothing() {
        let outcome = made(&[
            pod("web", "web"),
            pod("db", "db"),
            policy("high", 300, "web", "10.0.0.0/8"),
            policy("low", 100, "db", "10.0.0.0/8"),
        ]);
        assert_eq!(lost(&outcome, "low"), []);
        assert_eq!(outcome.policies["low"].accepted.message, "the spec is in force");
    }

    #[test]
    fn a_status_stays_short_and_counts_what_it_leaves_out() {
        let cidrs: Vec<String> = (0..20).map(|n| format!("10.{}.0.0/16", 2 * n)).collect();
        let mut objects = vec![pod("web", "web"), policy("all", 0, "web", "10.0.0.0/8")];
        objects.push(policy("many", 500, "web", &cidrs.join(", ")));
        for n in 0..18 {
            objects.push(policy(
                &format!("one-{n}"),
                100,
                "web",
                &format!("10.{}.0.0/16", 2 * n + 1),
            ));
        }
        let world = testing::world(&format!("{NODE}{}", objects.concat()));
        let backlog = Backlog::new(&world);
        let mut due = status::due(backlog.policies(), &world, &backlog, testing::time(0));
        let status = due.remove("all").unwrap();
        assert_eq!((status.lost.len(), status.more_lost), (16, 3));
        assert_eq!(status.lost[0].policy, "many");
        assert_eq!((status.lost[0].ranges.len(), status.lost[0].more_ranges), (16, 4));
        assert_eq!((status.lost[1].ranges.len(), status.lost[1].more_ranges), (1, 0));
    }
}
