//! What the operator says of a policy: condition types, reasons, and verdicts without a time.
//!
//! A reason is also the reason of the Event on the policy. They are part of the API: stable, and each with
//! one meaning.

use std::fmt;

/// The condition types of an EgressNATPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The spec is valid and in force.
    Accepted,
    /// A node is the gateway, with the addresses asked for.
    GatewayReady,
    /// Every node concerned has it in its kernel.
    Programmed,
    /// Pods start only when their node knows them: their first packets are covered.
    Gated,
    /// It works, but not as a whole.
    Degraded,
}

/// Why a condition is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Accepted: the spec is in force.
    Accepted,
    /// Accepted: the spec says something that cannot be done; the message says what to write.
    InvalidSpec,
    /// Accepted: all 16383 ids are taken.
    IdsExhausted,
    /// GatewayReady, Programmed and Gated: nothing is in force, since the policy is not accepted.
    NotAccepted,
    /// GatewayReady: the gateway and its addresses are there.
    GatewayReady,
    /// GatewayReady: no node has the labels asked for.
    NoGatewayNode,
    /// GatewayReady: all possible gateways are not Ready; the one in force is kept.
    GatewayNotReady,
    /// GatewayReady: no node, or none of those allowed, holds the address.
    AddressNotFound,
    /// GatewayReady: the two addresses are held by different nodes.
    AddressesApart,
    /// GatewayReady: none of the nodes allowed has the interface.
    InterfaceNotFound,
    /// GatewayReady: the agents of the nodes allowed have not yet said which interfaces there are.
    AgentNotReporting,
    /// GatewayReady: another entry of the policy has the only gateway that an entry could have.
    GatewayTaken,
    /// GatewayReady: the gateway has no internal address, to which other nodes could tunnel.
    NoUnderlay,
    /// Programmed: every node concerned reports it in place.
    Programmed,
    /// Programmed: some nodes have not yet reported it.
    Progressing,
    /// Programmed: some nodes report that they cannot do it.
    NodeFailed,
    /// Programmed: there is no gateway to send to.
    NoGateway,
    /// Programmed and Degraded: the gateway's agent does not find the address on its node.
    AddressMissing,
    /// Degraded: nothing is.
    AsSpecified,
    /// Degraded: destinations are of a family that the gateway has no address of.
    FamilyNotServed,
    /// Degraded: several Ready nodes claim the address.
    AddressConflict,
    /// Degraded: some of several gateways are not there or not ready; the pods use the others.
    GatewayMissing,
    /// Degraded: pods are in zones without a gateway, and zoneAffinity is Require.
    ZoneNotServed,
    /// Degraded: another policy may send with the same address and some of the same ports.
    PortsShared,
    /// Degraded: all of the policy's source ports are taken towards a destination; more connections are dropped.
    PortsExhausted,
    /// Degraded: the gateway's interface with the address has no next hop, and reaches its own networks alone.
    NextHopMissing,
    /// Degraded: nodes with selected pods have no internal address to tunnel from.
    SourceWithoutUnderlay,
    /// Gated: on every node concerned.
    Gated,
    /// Gated: the installation does without the start gate.
    GateOff,
    /// Gated: the start gate is not in place on some nodes concerned.
    GateMissing,
}

/// One condition, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the condition's type holds.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence that says what to do where there is something to do.
    pub message: String,
}

impl Verdict {
    /// The condition holds.
    pub fn yes(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            holds: true,
            reason,
            message: message.into(),
        }
    }

    /// The condition does not hold.
    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            holds: false,
            reason,
            message: message.into(),
        }
    }
}

impl ConditionType {
    /// All types, in the order in which they are written.
    pub const ALL: [Self; 5] = [
        Self::Accepted,
        Self::GatewayReady,
        Self::Programmed,
        Self::Gated,
        Self::Degraded,
    ];

    /// Whether the condition is good news when it holds.
    pub fn good_when(self, holds: bool) -> bool {
        holds != matches!(self, Self::Degraded)
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The first few of `names`, and how many more there are: a message must stay short.
pub fn some_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    some_of_with(", ", names)
}

/// As [`some_of`], with another separator.
pub fn some_of_with<'a>(separator: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = names.into_iter().collect();
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(separator),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(separator)),
    }
}

/// The first few of these sentences, and what to do; none where there is nothing to say.
pub fn sentences_and_advice<'a>(
    sentences: impl IntoIterator<Item = &'a str>,
    advice: &str,
) -> Option<String> {
    let said = some_of_with("; ", sentences);
    (!said.is_empty()).then(|| format!("{said}: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_api_text() {
        assert_eq!(ConditionType::GatewayReady.to_string(), "GatewayReady");
        assert_eq!(Reason::FamilyNotServed.to_string(), "FamilyNotServed");
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(some_of(["a", "b", "c"]), "a, b, c");
        assert_eq!(some_of(["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
