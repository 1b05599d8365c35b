//! A [`Diff`] for people.

use std::fmt;

use egressnat_operator::condition::some_of;

use super::diff::{Change, Diff, NodeDiff, PolicyDiff, Way};
use crate::words;

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for policy in &self.policies {
            writeln!(f, "{policy}")?;
        }
        for node in &self.nodes {
            write!(f, "\n{node}")?;
        }
        if self.nodes.is_empty() {
            writeln!(f, "\nNothing would change.")?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = if self.new { "would be new" } else { "is there" };
        let pods = if self.pods == 1 { "pod" } else { "pods" };
        write!(
            f,
            "Policy {} {is}: it would capture packets of {} {pods}.",
            self.name, self.pods
        )?;
        match &self.wrong {
            Some(why) => write!(f, " It would not work: {why}."),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NodeDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let anew = if self.rewritten {
            ", whose plan would be written anew"
        } else {
            ""
        };
        writeln!(f, "Node {}{anew}", self.name)?;
        for (policy, addresses) in &self.gateway_of {
            let addresses = words::join(addresses);
            writeln!(f, "  becomes the gateway of {policy}, with {addresses}")?;
        }
        for policy in &self.no_longer_gateway_of {
            writeln!(f, "  is no longer the gateway of {policy}")?;
        }
        for same in &self.pods {
            let pods = if same.pods.len() == 1 { "Pod" } else { "Pods" };
            writeln!(f, "  {pods} {}", some_of(same.pods.iter().map(String::as_str)))?;
            for change in &same.changes {
                writeln!(f, "    {change}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |way: &Option<Way>| way.as_ref().map_or("not captured".into(), ToString::to_string);
        let (ranges, before, after) = (words::ranges(&self.ranges), way(&self.before), way(&self.after));
        write!(f, "{ranges}: {before} -> {after}")
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.gateway {
            Some(gateway) => {
                let source = words::source(&self.addresses, self.source_ports);
                write!(f, "{}, {source} by {gateway}", self.policy)
            }
            None => write!(f, "{}, by no gateway", self.policy),
        }
    }
}
