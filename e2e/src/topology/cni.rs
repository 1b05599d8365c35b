//! What a CNI does to packets that leave the cluster.

use super::{FAMILIES, Family, Node, PODS, SERVICES};

/// How pods' packets get a node's address where no policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// `masquerade`, as most do, in a chain of this priority.
    Masquerade {
        /// The chain's priority: kindnet has 90, most have 100, Calico has 110.
        priority: i32,
    },
    /// `snat to` the node's address, as AWS's does: old connections keep their translation whatever changes.
    PlainSnat,
    /// Not at all: they leave with their own.
    Nothing,
}

impl Cni {
    /// The CNI's table on `node`, in nft's syntax.
    pub(super) fn ruleset(self, node: &Node) -> String {
        let priority = match self {
            Self::Masquerade { priority } => priority,
            Self::PlainSnat => 100,
            Self::Nothing => return String::new(),
        };
        let rules: String = FAMILIES.iter().map(|family| self.rule(*family, node)).collect();
        format!(
            "table inet cni {{ chain postrouting {{ type nat hook postrouting priority {priority};\n{rules}}}\n}}"
        )
    }

    fn rule(self, family: Family, node: &Node) -> String {
        let (ip, index) = match family {
            Family::V4 => ("ip", 0),
            Family::V6 => ("ip6", 1),
        };
        let (pods, services) = (PODS[index], SERVICES[index]);
        let translation = match self {
            Self::Masquerade { .. } => "masquerade".to_owned(),
            Self::PlainSnat | Self::Nothing => format!("snat {ip} to {}", node.address.of(family)),
        };
        format!("{ip} saddr {pods} {ip} daddr != {{ {pods}, {services} }} {translation}\n")
    }
}
