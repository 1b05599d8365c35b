//! The gateways of a policy: one for each entry, and never the same one twice.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::EgressNATPolicyStatus;

use super::gateway::{Fit, Resolution, Resolver, list};
use crate::choice::{EntryKey, GatewayEntry};
use crate::condition::{Reason, Verdict, some_of};
use crate::valid::ValidPolicy;

/// Finds a gateway for every entry of a policy, in the order of the entries. `status` is the policy's: what is
/// its gateway now stays while it is Ready and fit, so that connections live on.
///
/// Two entries never have the same node with the same addresses: that would be one gateway with two shares of
/// the pods. Which entry gets a node that several could have follows from what the entries say, not from
/// their order: first those whose gateway stays, then those with the fewest nodes to choose from.
pub fn resolve(
    resolver: &Resolver<'_>,
    policy: &ValidPolicy,
    status: &EgressNATPolicyStatus,
) -> Vec<Resolution> {
    let mut claims: Vec<Claim> = policy
        .gateways
        .iter()
        .enumerate()
        .map(|(index, entry)| Claim::of(index, entry, resolver, status))
        .collect();
    claims.sort_by_key(|claim| (Reverse(claim.stays), claim.choices(), claim.entry.key));
    let mut taken = BTreeSet::new();
    let mut resolutions: Vec<(usize, Resolution)> = Vec::with_capacity(claims.len());
    for claim in claims {
        resolutions.push((claim.index, claim.settle(resolver, &mut taken)));
    }
    resolutions.sort_unstable_by_key(|(index, _)| *index);
    resolutions
        .into_iter()
        .map(|(_, resolution)| resolution)
        .collect()
}

/// An entry that looks for its gateway.
struct Claim<'a> {
    index: usize,
    entry: &'a GatewayEntry,
    fit: Result<Fit<'a>, Verdict>,
    /// The node that is its gateway now.
    current: Option<&'a str>,
    /// That node is fit and Ready.
    stays: bool,
}

impl<'a> Claim<'a> {
    fn of(
        index: usize,
        entry: &'a GatewayEntry,
        resolver: &Resolver<'a>,
        status: &'a EgressNATPolicyStatus,
    ) -> Self {
        let fit = resolver.fit(&entry.choice);
        let current = current(status, entry.key);
        let is_fit = |node: &str| fit.as_ref().is_ok_and(|fit| fit.contains_key(node));
        Self {
            index,
            entry,
            stays: current.is_some_and(|node| is_fit(node) && resolver.is_ready(node)),
            current,
            fit,
        }
    }

    /// How many nodes it can choose from.
    fn choices(&self) -> usize {
        self.fit.as_ref().map_or(0, Fit::len)
    }

    /// One of the nodes that no other entry has taken.
    fn settle(self, resolver: &Resolver<'_>, taken: &mut BTreeSet<(String, Vec<IpAddr>)>) -> Resolution {
        let (all, addresses) = match self.fit {
            Ok(fit) => (fit, self.entry.choice.addresses()),
            Err(verdict) => return Resolution::none(verdict),
        };
        let is_taken =
            |node: &&str, addresses: &Vec<IpAddr>| taken.contains(&((*node).to_owned(), addresses.clone()));
        let (others, left): (Fit, Fit) = all.into_iter().partition(|(node, a)| is_taken(node, a));
        if left.is_empty() {
            return Resolution::none(taken_verdict(&others));
        }
        let resolution = resolver.pick(&left, self.current, addresses.is_some());
        if let Some(gateway) = &resolution.gateway {
            taken.insert((gateway.node.clone(), gateway.addresses.clone()));
        }
        resolution
    }
}

/// The node that is the gateway now: of the entry with this key, or of the policy that has only one.
fn current(status: &EgressNATPolicyStatus, key: Option<EntryKey>) -> Option<&str> {
    let key = key.map(|key| key.to_string());
    let entry = status.gateways.iter().find(|g| g.key == key)?;
    Some(entry.node.as_str()).filter(|node| !node.is_empty())
}

fn taken_verdict(fit: &Fit<'_>) -> Verdict {
    let gateways: Vec<String> = fit
        .iter()
        .map(|(node, addresses)| format!("{node} with {}", list(addresses)))
        .collect();
    let message = format!(
        "{} already serves another entry: let each entry select other nodes or addresses, or remove this one",
        some_of(gateways.iter().map(String::as_str))
    );
    Verdict::no(Reason::GatewayTaken, message)
}

#[cfg(test)]
mod tests {
    use egressnat_crds::policy::GatewayStatus;

    use super::*;
    use crate::testing;
    use crate::world::World;

    /// Nodes `a` to `d` with their own name as label `name`; `d` is not Ready; `a` and `b` have label `egress`.
    fn world() -> World {
        let node = |name: &str, egress: &str, n: u8, ready: &str| {
            format!(
                "{{kind: Node, metadata: {{name: {name}, uid: {name}, labels: {{name: {name}{egress}}}}}, \
                  status: {{addresses: [{{type: InternalIP, address: 172.18.0.{n}}}], \
                  conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
            )
        };
        testing::world(
            &[
                node("a", ", egress: 'yes'", 1, "True"),
                node("b", ", egress: 'yes'", 2, "True"),
                node("c", "", 3, "True"),
                node("d", "", 4, "False"),
            ]
            .join("\n---\n"),
        )
    }

    const EGRESS: &str = "{nodeSelector: {matchLabels: {egress: 'yes'}}}";
    const ANY: &str = "{nodeSelector: {}}";

    fn only(node: &str) -> String {
        format!("{{nodeSelector: {{matchLabels: {{name: {node}}}}}}}")
    }

    fn policy(entries: &[&str]) -> ValidPolicy {
        let spec = format!(
            "{{selectors: [{{podSelector: {{}}}}], egressGateways: [{}]}}",
            entries.join(", ")
        );
        ValidPolicy::parse(&serde_yaml_ng::from_str(&spec).unwrap()).unwrap()
    }

    /// A status in which the entries have these nodes.
    fn status(policy: &ValidPolicy, nodes: &[&str]) -> EgressNATPolicyStatus {
        let gateway = |(entry, node): (&GatewayEntry, &&str)| GatewayStatus {
            node: node.to_string(),
            key: entry.key.map(|key| key.to_string()),
            ..GatewayStatus::default()
        };
        EgressNATPolicyStatus {
            gateways: policy.gateways.iter().zip(nodes).map(gateway).collect(),
            ..EgressNATPolicyStatus::default()
        }
    }

    /// The nodes that the entries get, whose gateways were `before`; `-` where one gets none.
    fn nodes(world: &World, entries: &[&str], before: &[&str]) -> Vec<String> {
        let policy = policy(entries);
        let resolutions = resolve(&Resolver::new(world), &policy, &status(&policy, before));
        let node = |r: &Resolution| r.gateway.as_ref().map_or("-".into(), |g| g.node.clone());
        resolutions.iter().map(node).collect()
    }

    #[test]
    fn each_entry_has_a_gateway_of_its_own() {
        let world = world();
        assert_eq!(nodes(&world, &[&only("c"), EGRESS], &[]), ["c", "a"]);
        assert_eq!(
            nodes(&world, &[EGRESS, &only("a")], &[]),
            ["b", "a"],
            "the fewest choices first"
        );
        assert_eq!(
            nodes(&world, &[&only("a"), EGRESS], &[]),
            ["a", "b"],
            "in any order"
        );
    }

    #[test]
    fn an_entry_for_which_no_node_is_left_says_so() {
        let world = world();
        let entries = [EGRESS, &only("a"), &only("b")];
        assert_eq!(nodes(&world, &entries, &[]), ["-", "a", "b"]);
        let resolutions = resolve(&Resolver::new(&world), &policy(&entries), &Default::default());
        assert_eq!(resolutions[0].verdict.reason, Reason::GatewayTaken);
        let message = &resolutions[0].verdict.message;
        assert!(
            message.starts_with("a with 172.18.0.1, b with 172.18.0.2 already"),
            "{message}"
        );
    }

    #[test]
    fn one_node_can_be_two_gateways_with_different_addresses() {
        let mut world = world();
        let c = world.plans.entry("c".into()).or_default();
        c.status.interfaces = vec![egressnat_crds::plan::NodeInterface {
            name: "eth0".into(),
            addresses: vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
            default_route: vec![],
        }];
        let [one, two] = [1, 2].map(|n| format!("{{nodeSelector: {{}}, egressIP: 192.0.2.{n}}}"));
        assert_eq!(nodes(&world, &[&one, &two], &[]), ["c", "c"]);
        let same = "{nodeSelector: {matchLabels: {name: c}}, interface: eth0}";
        assert_eq!(nodes(&world, &[&one, same], &["c", ""]), ["c", "-"]);
    }

    #[test]
    fn a_gateway_stays_and_one_that_fails_takes_none_from_another_entry() {
        let world = world();
        let entries = [EGRESS, ANY];
        assert_eq!(nodes(&world, &entries, &["b", "a"]), ["b", "a"]);
        // That of the second is not Ready any more, and the first by name is the first entry's.
        assert_eq!(nodes(&world, &entries, &["a", "d"]), ["a", "b"]);
        // The first entry's choice is narrower, but the second's gateway stays.
        assert_eq!(nodes(&world, &[&only("a"), ANY], &["", "a"]), ["-", "a"]);
    }

    #[test]
    fn a_node_that_is_not_ready_is_a_gateway_when_no_other_is_left() {
        let world = world();
        let entries = [ANY, &only("a"), &only("b"), &only("c")];
        assert_eq!(nodes(&world, &entries, &[]), ["d", "a", "b", "c"]);
    }
}
