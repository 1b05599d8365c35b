//! An [`Explanation`] for people.

use std::fmt;

use egressnat_crds::interval::Interval;
use egressnat_operator::ranges;
use egressnat_operator::world::Pod;

use super::{Answer, Explanation, Fate, Seen, Selecting};
use crate::words;

/// What the outside sees, in one sentence.
pub(super) fn summary(
    pod: &Pod,
    policies: &[Selecting],
    seen: &[Seen],
    never: Option<&str>,
    to: Option<&Answer>,
) -> String {
    if let Some(answer) = to {
        return answered(policies, seen, answer);
    }
    match (never, seen) {
        (Some(never), _) => format!("No policy can select the pod: {never}."),
        (None, []) if policies.is_empty() => {
            "The outside sees what it would see without egressnat: no policy selects the pod.".into()
        }
        (None, []) => "The outside sees what it would see without egressnat.".into(),
        (None, _) => in_general(pod, policies, seen),
    }
}

fn answered(policies: &[Selecting], seen: &[Seen], answer: &Answer) -> String {
    let to = answer.address;
    if let Some(because) = &answer.not_captured_because {
        return format!("Not captured, because {because}.");
    }
    let fate = seen.iter().find(|s| words::contain(&s.ranges, to));
    match fate.map(|s| (&s.policy, &s.fate)) {
        None => format!("The pod sends nothing to {to}."),
        Some((
            policy,
            Fate::Gateway {
                address,
                ports,
                gateway,
            },
        )) => {
            let source = words::source(&[*address], *ports);
            let waiting = waiting(policies.iter().filter(|p| p.name == *policy));
            let by = format!("by policy {policy}, out of node {gateway}");
            match waiting.is_empty() {
                true => format!("{to} sees {source}, {by}."),
                false => format!(
                    "{to} will see {source}, {by}, once {} {} programmed it.",
                    words::join(&waiting),
                    have(&waiting)
                ),
            }
        }
        Some((policy, Fate::Dropped { because })) => {
            format!(
                "Nothing reaches {to}: policy {policy} captures the packets, and they are dropped, because {because}."
            )
        }
        Some((policy, Fate::NodeAddress { because })) => format!(
            "{to} sees the address of the pod's node: policy {policy} captures the packets, but {because}, \
             and noGateway is NodeIP."
        ),
    }
}

fn in_general(pod: &Pod, policies: &[Selecting], seen: &[Seen]) -> String {
    let (mut addresses, mut others): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for (fate, ranges) in by_fate(seen) {
        let ranges = words::ranges(&ranges);
        match fate {
            Fate::Gateway { address, ports, .. } => {
                addresses.push(format!("{} for {ranges}", words::source(&[*address], *ports)));
            }
            Fate::Dropped { because } => {
                others.push(format!("packets to {ranges} are dropped, because {because}"));
            }
            Fate::NodeAddress { because } => {
                others.push(format!(
                    "packets to {ranges} have the node's address, because {because}"
                ));
            }
        }
    }
    let captured = ranges::merge(seen.iter().flat_map(|s| s.ranges.iter().copied()));
    let rest = ranges::subtract(&of_the_pod(pod), &captured);
    if !rest.is_empty() {
        others.push("the rest leaves as without egressnat".into());
    }
    let waiting = waiting(policies.iter());
    let sees = match (addresses.is_empty(), waiting.is_empty()) {
        (true, _) => None,
        (false, true) => Some(format!("the outside sees {}", words::join(&addresses))),
        (false, false) => Some(format!(
            "once {} {} programmed it, the outside sees {}",
            words::join(&waiting),
            have(&waiting),
            words::join(&addresses)
        )),
    };
    let parts: Vec<String> = sees.into_iter().chain(others).collect();
    let sentence = format!("{}.", parts.join("; "));
    let mut letters = sentence.chars();
    letters
        .next()
        .map(|c| c.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Ranges of both families that meet the same fate, joined.
fn by_fate(seen: &[Seen]) -> Vec<(&Fate, Vec<Interval>)> {
    let mut fates: Vec<(&Fate, Vec<Interval>)> = Vec::new();
    for one in seen {
        match fates.iter_mut().find(|(fate, _)| **fate == one.fate) {
            Some((_, ranges)) => *ranges = ranges::merge(ranges.iter().chain(&one.ranges).copied()),
            None => fates.push((&one.fate, one.ranges.clone())),
        }
    }
    fates
}

/// Every address of the families that the pod has.
fn of_the_pod(pod: &Pod) -> Vec<Interval> {
    let mut all = ranges::everything();
    if !pod.ips.is_empty() {
        all.retain(|r| pod.ips.iter().any(|ip| ip.is_ipv4() == r.first().is_ipv4()));
    }
    all
}

/// The nodes that have not yet programmed their part.
fn waiting<'a>(policies: impl Iterator<Item = &'a Selecting>) -> Vec<&'a str> {
    let nodes = policies.flat_map(|p| &p.nodes);
    let mut waiting: Vec<&str> = nodes
        .filter(|n| !n.progress.is_programmed())
        .map(|n| n.node.as_str())
        .collect();
    waiting.sort_unstable();
    waiting.dedup();
    waiting
}

fn have<T>(nodes: &[T]) -> &'static str {
    if nodes.len() == 1 { "has" } else { "have" }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pod {}", self.pod.name)?;
        if let Some(node) = &self.pod.node {
            write!(f, " on node {node}")?;
        }
        match self.pod.ips.is_empty() {
            true => writeln!(f, ", still without an address")?,
            false => writeln!(f, ", {}", words::join(&self.pod.ips))?,
        }
        match &self.to {
            None => self.all_policies(f)?,
            Some(answer) => self.only_the_winner(f, answer)?,
        }
        writeln!(f, "\n{}", self.summary)
    }
}

impl Explanation {
    fn all_policies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for policy in &self.policies {
            writeln!(f, "\n{policy}")?;
            for lost in &policy.lost {
                let ranges = words::ranges(&lost.ranges);
                writeln!(f, "  loses      {ranges} to {}: {}", lost.to, lost.because)?;
            }
            policy.in_force(f)?;
        }
        self.not_in_force(f)
    }

    /// For one destination: the policy that captures it, and those that it keeps off.
    fn only_the_winner(&self, f: &mut fmt::Formatter<'_>, answer: &Answer) -> fmt::Result {
        let Some(winner) = self
            .policies
            .iter()
            .find(|p| Some(&p.name) == answer.captured_by.as_ref())
        else {
            return self.not_in_force(f);
        };
        writeln!(f, "\n{winner}")?;
        for loser in &self.policies {
            let there = |l: &&super::Lost| l.to == winner.name && words::contain(&l.ranges, answer.address);
            if let Some(lost) = loser.lost.iter().find(there) {
                writeln!(f, "  wins over  {}: {}", loser.name, lost.because)?;
            }
        }
        winner.in_force(f)
    }

    /// Where no policy selects the pod, one that is not in force may have been meant.
    fn not_in_force(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.policies.is_empty() && self.never.is_none() {
            for (policy, why) in &self.refused {
                writeln!(f, "\nPolicy {policy} is not in force: {why}")?;
            }
        }
        Ok(())
    }
}

impl Selecting {
    fn in_force(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wins.is_empty() {
            return Ok(());
        }
        match &self.gateway {
            Some(node) => {
                let source = words::source(&self.addresses, self.source_ports);
                writeln!(f, "  address    {source}, of node {node}")?;
            }
            None => writeln!(f, "  address    none: {}", self.gateway_message)?,
        }
        for node in &self.nodes {
            writeln!(f, "  {:<9}  {}: {}", node.role, node.node, node.progress)?;
        }
        Ok(())
    }
}

impl fmt::Display for Selecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, priority, created) = (&self.name, self.priority, &self.created);
        writeln!(f, "Policy {name} (priority {priority}, created {created})")?;
        if let Some(invalid) = &self.invalid {
            writeln!(f, "  invalid    {invalid}")?;
        }
        match self.wins.is_empty() {
            true => write!(f, "  applies    nowhere"),
            false => write!(f, "  applies    to {}", words::ranges(&self.wins)),
        }
    }
}
