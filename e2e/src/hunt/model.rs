//! What policies mean for a pod's packets, told from the API's text and not from the product's code.

use super::{
    place::{Source, VALUES},
    timeline::{Time, Timeline},
};

/// A value of the hunt's label, on a pod, a namespace or a node.
pub type Label = &'static str;

/// A policy as the hunt writes them. Of two that select a packet, the one with the higher priority applies;
/// no two have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its priority.
    pub priority: i32,
    /// The pods that it selects.
    pub selector: Selector,
    /// A destination that it leaves alone, by its place in [`super::place::OUTSIDE`].
    pub excluded: Option<usize>,
    /// Its addresses, by their place in [`super::place::EGRESS`].
    pub egress: usize,
    /// Its gateway must have the gateway's label; otherwise any node that holds the addresses will do.
    pub by_label: bool,
}

/// The other of the two values.
#[must_use]
pub fn other(label: Label) -> Label {
    if label == VALUES[0] { VALUES[1] } else { VALUES[0] }
}

/// Labels that must all be there; at least one is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selector {
    /// Of the pod.
    pub pod: Option<Label>,
    /// Of its namespace.
    pub namespace: Option<Label>,
    /// Of its node.
    pub node: Option<Label>,
}

/// The labels that decide of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels {
    /// Its own.
    pub pod: Label,
    /// Its namespace's.
    pub namespace: Label,
    /// Its node's.
    pub node: Label,
}

impl Selector {
    /// One that selects none of the same pods.
    #[must_use]
    pub fn contrary(mut self) -> Self {
        let given = [&mut self.pod, &mut self.namespace, &mut self.node];
        if let Some(label) = given.into_iter().flatten().next() {
            *label = other(label);
        }
        self
    }

    fn matches(&self, labels: Labels) -> bool {
        let is = |wanted: Option<Label>, label: Label| wanted.is_none_or(|wanted| wanted == label);
        is(self.pod, labels.pod) && is(self.namespace, labels.namespace) && is(self.node, labels.node)
    }
}

/// The policy that applies to packets of a pod with these labels to this destination.
pub fn applies<'a>(
    policies: impl IntoIterator<Item = &'a Policy>,
    labels: Labels,
    destination: usize,
) -> Option<&'a Policy> {
    policies
        .into_iter()
        .filter(|policy| policy.selector.matches(labels) && policy.excluded != Some(destination))
        .max_by_key(|policy| policy.priority)
}

/// Every source that a packet may have, whichever of the possible values are in force: changes that are under way
/// at the same time may come into force in any order.
pub fn possible_sources<'a>(
    policies: impl IntoIterator<Item = &'a Timeline<Option<Policy>>>,
    labels: &[Labels],
    (node, destination): (usize, usize),
    (from, to): (Time, Time),
) -> Vec<Source> {
    let mut combinations: Vec<Vec<&Policy>> = vec![Vec::new()];
    for timeline in policies {
        let values: Vec<_> = timeline.possible(from, to).collect();
        combinations = combinations
            .iter()
            .flat_map(|chosen| {
                values
                    .iter()
                    .map(|value| chosen.iter().copied().chain(value.as_ref()).collect())
            })
            .collect();
    }
    let of = |policies: &Vec<&'a Policy>, labels: &Labels| {
        let policy = applies(policies.iter().copied(), *labels, destination);
        policy.map_or(Source::Node(node), |policy| Source::Egress(policy.egress))
    };
    let each = combinations
        .iter()
        .flat_map(|policies| labels.iter().map(move |labels| of(policies, labels)));
    let mut sources: Vec<Source> = each.collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Labels = Labels {
        pod: "red",
        namespace: "blue",
        node: "blue",
    };

    fn policy(priority: i32, pod: Label, egress: usize) -> Policy {
        Policy {
            priority,
            selector: Selector {
                pod: Some(pod),
                namespace: None,
                node: None,
            },
            excluded: None,
            egress,
            by_label: false,
        }
    }

    fn egress(policies: &[Policy], destination: usize) -> Option<usize> {
        applies(policies, RED, destination).map(|policy| policy.egress)
    }

    #[test]
    fn the_higher_priority_applies_unless_it_excludes_the_destination() {
        let mut policies = [policy(1, "red", 0), policy(2, "red", 1), policy(3, "blue", 2)];
        assert_eq!(egress(&policies, 0), Some(1));
        policies[1].excluded = Some(0);
        assert_eq!(egress(&policies, 0), Some(0));
        assert_eq!(egress(&policies, 1), Some(1));
        assert_eq!(egress(&policies[2..], 0), None);
    }

    #[test]
    fn every_label_of_a_selector_must_be_there() {
        let mut policies = [policy(1, "red", 0)];
        policies[0].selector.namespace = Some("red");
        assert_eq!(egress(&policies, 0), None);
        policies[0].selector.namespace = Some("blue");
        assert_eq!(egress(&policies, 0), Some(0));
        policies[0].selector.node = Some("red");
        assert_eq!(egress(&policies, 0), None);
    }

    #[test]
    fn changes_under_way_together_come_into_force_in_any_order() {
        let mut first = Timeline::new(Some(policy(1, "red", 0)));
        let mut second = Timeline::new(Some(policy(2, "red", 1)));
        let at =
            |timelines: [&Timeline<_>; 2], time| possible_sources(timelines, &[RED], (7, 0), (time, time));
        assert_eq!(at([&first, &second], 5), [Source::Egress(1)]);
        first.change(Some(policy(1, "red", 3)), 10);
        second.change(None, 10);
        let any = [Source::Egress(0), Source::Egress(1), Source::Egress(3)];
        assert_eq!(at([&first, &second], 15), any);
        first.change(None, 16);
        assert_eq!(at([&first, &second], 17)[0], Source::Node(7));
        first.settle(20);
        second.settle(20);
        assert_eq!(at([&first, &second], 20), [Source::Node(7)]);
    }
}
