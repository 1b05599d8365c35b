//! Addresses with which several policies send.
//!
//! That is allowed: what the outside sees is then not one policy's alone, and each of them says so. Only where
//! a policy promises ports ([`ValidPolicy::source_ports`](crate::valid::ValidPolicy)) does it matter who else
//! may take them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::ports::PortRange;

use super::policies::Policies;

/// Policies that send with an address, by name, and with which of its ports: all where none are given.
type Senders = BTreeMap<String, Option<PortRange>>;

/// Who sends with which addresses.
#[derive(Debug, Default, PartialEq)]
pub struct Sharing {
    senders: BTreeMap<IpAddr, Senders>,
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Sharing {
    /// Of the gateways of all policies in force, wherever they are: the outside knows no nodes.
    pub fn of(in_force: &Policies) -> Self {
        let mut sharing = Self::default();
        for slot in &in_force.slots {
            let policy = &in_force.policies[slot.policy];
            for address in slot.resolution.gateway.iter().flat_map(|g| &g.addresses) {
                let senders = sharing.senders.entry(*address).or_default();
                senders.insert(policy.name.clone(), policy.spec.source_ports);
                let of_policy = sharing.addresses.entry(policy.name.clone()).or_default();
                of_policy.insert(*address);
            }
        }
        sharing
    }

    /// The addresses that `policy` shares with others, by those others.
    pub fn with_others(&self, policy: &str) -> BTreeMap<Vec<&str>, Vec<IpAddr>> {
        let mut shared: BTreeMap<Vec<&str>, Vec<IpAddr>> = BTreeMap::new();
        for (address, senders) in self.at_addresses_of(policy) {
            let others: Vec<&str> = senders
                .keys()
                .map(String::as_str)
                .filter(|other| *other != policy)
                .collect();
            if !others.is_empty() {
                shared.entry(others).or_default().push(address);
            }
        }
        shared
    }

    /// The policies that may take some of `ports` at an address of `policy`, with all the ports that they may
    /// take.
    pub fn at_ports(&self, policy: &str, ports: PortRange) -> BTreeMap<&str, Option<PortRange>> {
        let all = self.at_addresses_of(policy).flat_map(|(_, senders)| senders);
        let others = all.filter(|(other, _)| *other != policy);
        let overlap = others.filter(|(_, theirs)| theirs.is_none_or(|theirs| theirs.overlaps(&ports)));
        overlap.map(|(other, theirs)| (other.as_str(), *theirs)).collect()
    }

    fn at_addresses_of(&self, policy: &str) -> impl Iterator<Item = (IpAddr, &Senders)> {
        let addresses = self.addresses.get(policy).into_iter().flatten();
        addresses.filter_map(|address| Some((*address, self.senders.get(address)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use crate::condition::Reason;
    use crate::plan::PolicyOutcome;
    use crate::testing;

    const NODE: &str = "{kind: Node, metadata: {name: edge, uid: edge}, status: {addresses: [\
        {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 192.0.2.2}, \
        {type: InternalIP, address: '2001:db8::1'}], conditions: [{type: Ready, status: 'True'}]}}";

    /// The outcomes of policies with these names, addresses and ports (none where empty), whichever was first.
    fn outcomes(policies: &[(&str, &str, &str)]) -> Vec<PolicyOutcome> {
        let policy = |(age, (name, addresses, ports)): (usize, &(&str, &str, &str))| {
            let ports = match *ports {
                "" => String::new(),
                ports => format!(", sourcePorts: '{ports}'"),
            };
            format!(
                "{{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, metadata: {{name: {name}, uid: {name}, \
                  generation: 1, creationTimestamp: '2026-01-0{}T00:00:00Z'}}, spec: {{selectors: \
                  [{{podSelector: {{}}}}], egressSourceIPs: [{addresses}]{ports}}}}}",
                age + 1
            )
        };
        let of = |policies: Vec<String>| {
            let documents: Vec<String> = [NODE.to_owned()].into_iter().chain(policies).collect();
            plan(&testing::world(&documents.join("\n---\n"))).policies
        };
        let forward = of(policies.iter().enumerate().map(policy).collect());
        let backward = of(policies.iter().rev().enumerate().map(policy).collect());
        for (name, outcome) in &forward {
            assert_eq!(
                outcome.gateway_ready, backward[name].gateway_ready,
                "in any order"
            );
            assert_eq!(outcome.degraded, backward[name].degraded, "in any order");
        }
        forward.into_values().collect()
    }

    fn shared_ports(outcome: &PolicyOutcome) -> Option<&str> {
        let mut reasons = outcome.degraded.iter();
        let (_, message) = reasons.find(|(reason, _)| *reason == Reason::PortsShared)?;
        Some(message)
    }

    #[test]
    fn policies_that_share_an_address_name_each_other() {
        let both = "192.0.2.1, '2001:db8::1'";
        let all = outcomes(&[
            ("a", both, ""),
            ("b", both, ""),
            ("c", "192.0.2.1", ""),
            ("d", "192.0.2.2", ""),
        ]);
        let messages: Vec<&str> = all.iter().map(|o| o.gateway_ready.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "edge sends with 192.0.2.1 and 2001:db8::1; b also sends with 2001:db8::1; b, c also send with 192.0.2.1",
                "edge sends with 192.0.2.1 and 2001:db8::1; a also sends with 2001:db8::1; a, c also send with 192.0.2.1",
                "edge sends with 192.0.2.1; a, b also send with 192.0.2.1",
                "edge sends with 192.0.2.2",
            ]
        );
        assert!(all.iter().all(|o| o.gateway_ready.holds && o.degraded.is_empty()));
    }

    #[test]
    fn many_others_are_named_shortly() {
        let policy = |name: &'static str| (name, "192.0.2.1", "1-9");
        let all = outcomes(&["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"].map(policy));
        let message = &all[0].gateway_ready.message;
        assert!(
            message.ends_with("p2, p3, p4 and 5 more also send with 192.0.2.1"),
            "{message}"
        );
        assert!(shared_ports(&all[0]).unwrap().contains("p4 (1-9) and 5 more"));
    }

    #[test]
    fn ports_that_another_policy_may_take_are_not_this_ones_alone() {
        // The first is asked; whether it is degraded, and whether the second is.
        for (first, second, degraded) in [
            (
                ("192.0.2.1", "20000-29999"),
                ("192.0.2.1", "30000-39999"),
                [false, false],
            ),
            (
                ("192.0.2.1", "20000-30000"),
                ("192.0.2.1", "30000-39999"),
                [true, true],
            ),
            (("192.0.2.1", "20000-29999"), ("192.0.2.1", ""), [true, false]),
            (("192.0.2.1", "20000-29999"), ("192.0.2.2", ""), [false, false]),
            (
                ("192.0.2.1, '2001:db8::1'", "20000-29999"),
                ("'2001:db8::1'", "25000"),
                [true, true],
            ),
            (("192.0.2.1", ""), ("192.0.2.1", ""), [false, false]),
        ] {
            let all = outcomes(&[("a", first.0, first.1), ("b", second.0, second.1)]);
            let found: Vec<bool> = all.iter().map(|o| shared_ports(o).is_some()).collect();
            assert_eq!(found, degraded, "{first:?} {second:?}");
        }
        let all = outcomes(&[("a", "192.0.2.1", "20000-29999"), ("b", "192.0.2.1", "")]);
        assert_eq!(
            shared_ports(&all[0]).unwrap(),
            "the outside cannot tell this policy by its ports 20000-29999: b (all ports) may take some of them with the \
             same address; write sourcePorts that do not overlap in each of them, or give one another address"
        );
    }
}
