//! What the hunt changes.

use std::fmt;

use super::{
    model::{Label, Policy},
    place::{EGRESS, NAMESPACES, OUTSIDE},
};
use crate::site::NODES;

/// The names of the policies. Their number bounds what there is at a time.
pub const POLICIES: [&str; 4] = ["hunt-a", "hunt-b", "hunt-c", "hunt-d"];

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A policy is created, edited, or (`None`) deleted.
    Policy(&'static str, Option<Policy>),
    /// A pod, by its port, has another label.
    Pod(u16, Label),
    /// A namespace has.
    Namespace(usize, Label),
    /// A node has.
    Node(usize, Label),
    /// A node may be a gateway of policies that choose theirs by label, or may no longer.
    Gateway(usize, bool),
    /// Egress addresses move to another node.
    Addresses(usize, usize),
    /// Something is killed or upset.
    Trouble(Trouble),
}

/// What can happen to the programs on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The node's agent is killed.
    AgentKilled(usize),
    /// The node's agent has a new pod.
    AgentReplaced(usize),
    /// The node's agent stands still for some seconds, and hears of nothing.
    AgentHeld(usize),
    /// The operator that leads is killed.
    Operator,
    /// kube-proxy is started anew on a node.
    KubeProxy(usize),
    /// The node's conntrack forgets every connection.
    Conntrack(usize),
    /// The node's CNI looks for free addresses from the first again, so that the next pods have those of pods
    /// that have just gone.
    PodAddresses(usize),
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(name, None) => write!(formatter, "policy {name} is deleted"),
            Self::Policy(name, Some(policy)) => {
                let Policy {
                    priority: _,
                    selector,
                    excluded,
                    egress,
                    by_label,
                } = policy;
                write!(formatter, "policy {name} has {} for", EGRESS[*egress][0])?;
                for (what, label) in [
                    ("pods", selector.pod),
                    ("namespaces", selector.namespace),
                    ("nodes", selector.node),
                ] {
                    if let Some(label) = label {
                        write!(formatter, " {label} {what}")?;
                    }
                }
                if let Some(excluded) = excluded {
                    write!(formatter, ", not to {}", OUTSIDE[*excluded][0])?;
                }
                formatter.write_str(if *by_label { ", gateway by label" } else { "" })
            }
            Self::Pod(port, label) => write!(formatter, "pod of port {port} is {label}"),
            Self::Namespace(namespace, label) => {
                write!(formatter, "namespace {} is {label}", NAMESPACES[*namespace])
            }
            Self::Node(node, label) => write!(formatter, "node {} is {label}", NODES[*node].name),
            Self::Gateway(node, true) => write!(formatter, "node {} may be a gateway", NODES[*node].name),
            Self::Gateway(node, false) => {
                write!(formatter, "node {} may no longer be a gateway", NODES[*node].name)
            }
            Self::Addresses(pair, node) => {
                write!(formatter, "{} moves to {}", EGRESS[*pair][0], NODES[*node].name)
            }
            Self::Trouble(trouble) => trouble.fmt(formatter),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |node: &usize| NODES[*node].name;
        match self {
            Self::AgentKilled(node) => write!(formatter, "the agent of {} is killed", of(node)),
            Self::AgentReplaced(node) => write!(formatter, "the agent of {} has a new pod", of(node)),
            Self::AgentHeld(node) => write!(formatter, "the agent of {} is held", of(node)),
            Self::Operator => formatter.write_str("the operator that leads is killed"),
            Self::KubeProxy(node) => write!(formatter, "kube-proxy of {} is started anew", of(node)),
            Self::Conntrack(node) => write!(formatter, "conntrack of {} forgets everything", of(node)),
            Self::PodAddresses(node) => {
                write!(formatter, "{} gives addresses from the first again", of(node))
            }
        }
    }
}
