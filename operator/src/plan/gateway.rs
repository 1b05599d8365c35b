//! Which node is a gateway, and with which addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::plan::{Family, NodeInterface};

use crate::choice::{EgressAddresses, GatewayChoice};
use crate::condition::{Reason, Verdict, some_of};
use crate::world::{Node, World};

/// Label of a node with the zone it is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A gateway in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its node.
    pub node: String,
    /// Its addresses: at most one of each family, IPv4 first, at least one.
    pub addresses: Vec<IpAddr>,
    /// Its node is Ready.
    pub ready: bool,
    /// The zone of its node.
    pub zone: Option<String>,
}

/// What became of a choice of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The gateway, if there is one.
    pub gateway: Option<Gateway>,
    /// Condition `GatewayReady`.
    pub verdict: Verdict,
    /// Which other Ready nodes claim an address that only one can have.
    pub conflict: Option<String>,
}

/// Why a node cannot be the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unfit {
    AgentNotReporting,
    NoInterface,
    NoAddress,
    NoUnderlay,
}

/// Finds gateways, with one index for all policies.
pub struct Resolver<'a> {
    world: &'a World,
    holders: BTreeMap<IpAddr, BTreeSet<&'a str>>,
    underlay: Family,
}

impl Gateway {
    /// The families that it can serve.
    pub fn families(&self) -> Vec<Family> {
        self.addresses.iter().map(|a| Family::from(*a)).collect()
    }
}

impl Resolution {
    /// There is none.
    pub fn none(verdict: Verdict) -> Self {
        Self {
            gateway: None,
            verdict,
            conflict: None,
        }
    }
}

/// The zone that a node is in, as its label says.
pub fn zone_of(node: &Node) -> Option<&str> {
    node.labels.get(ZONE).map(String::as_str)
}

impl<'a> Resolver<'a> {
    /// Knows, for every address, the nodes that hold it: as their agents say, or, while an agent has not
    /// spoken, as the kubelet does. An external address (of a cloud's NAT) is not one that a node holds.
    pub fn new(world: &'a World) -> Self {
        let mut holders: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        for (name, node) in &world.nodes {
            let reported = world.interfaces(name);
            let unreported = if reported.is_empty() {
                &node.internal_ips[..]
            } else {
                &[]
            };
            for address in reported.iter().flat_map(|i| &i.addresses).chain(unreported) {
                holders.entry(*address).or_default().insert(name);
            }
        }
        Self {
            world,
            holders,
            underlay: world.underlay_family(),
        }
    }

    /// The nodes that can be the gateway, each with its addresses; at least one.
    pub fn fit(&self, choice: &GatewayChoice) -> Result<Fit<'a>, Verdict> {
        match choice {
            GatewayChoice::Nowhere => Err(Verdict::no(Reason::NotAccepted, "the spec is not accepted")),
            GatewayChoice::HolderOf(addresses) => self.holders_of(addresses),
            GatewayChoice::Labelled(selector, with) => {
                let nodes = self
                    .world
                    .nodes
                    .iter()
                    .filter(|(_, n)| selector.matches(&n.labels));
                self.fit_of(nodes.map(|(name, _)| name.as_str()), with)
            }
        }
    }

    /// Whether a node is Ready.
    pub fn is_ready(&self, node: &str) -> bool {
        self.world.nodes.get(node).is_some_and(|n| n.ready)
    }

    /// One of the fit: the current one if Ready, else the first Ready one by name. Without a Ready one the
    /// current or the first is taken all the same: its kernel may well work while its kubelet does not.
    ///
    /// `current` is the node that is the gateway now: it stays while it is Ready, so that connections live on.
    /// `named` says that the user named the addresses.
    pub fn pick(&self, fit: &Fit, current: Option<&str>, named: bool) -> Resolution {
        let ready: Vec<&str> = fit.keys().copied().filter(|n| self.is_ready(n)).collect();
        let current = current.filter(|c| fit.contains_key(c));
        let chosen = current
            .filter(|c| ready.contains(c))
            .or_else(|| ready.first().copied())
            .or(current)
            .or_else(|| fit.keys().next().copied());
        let Some((node, addresses)) = chosen.and_then(|c| fit.get_key_value(c)) else {
            return Resolution::none(Verdict::no(Reason::NoGatewayNode, "no node can be the gateway"));
        };
        let says = format!("{node} sends with {}", list(addresses));
        let verdict = match self.is_ready(node) {
            true => Verdict::yes(Reason::GatewayReady, says),
            false => Verdict::no(
                Reason::GatewayNotReady,
                format!("{says}, but the node is not Ready, and no other node can take its place"),
            ),
        };
        let others = ready.iter().filter(|n| *n != node).copied();
        let conflict = (named && ready.len() > 1).then(|| {
            let (addresses, others) = (list(addresses), some_of(others));
            format!("{others} and {node} claim {addresses}: remove it from all but one; {node} is used")
        });
        Resolution {
            gateway: Some(Gateway {
                node: (*node).to_owned(),
                addresses: addresses.clone(),
                ready: self.is_ready(node),
                zone: self.world.nodes.get(*node).and_then(zone_of).map(str::to_owned),
            }),
            verdict,
            conflict,
        }
    }

    /// The nodes that hold all of `addresses`.
    fn holders_of(&self, addresses: &[IpAddr]) -> Result<Fit<'a>, Verdict> {
        let nobody = BTreeSet::new();
        let holders = |a: &IpAddr| self.holders.get(a).unwrap_or(&nobody);
        let missing: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|a| holders(a).is_empty())
            .collect();
        if !missing.is_empty() {
            let message = format!(
                "no node holds {}: add that to an interface of a node, or name what a node holds",
                list(&missing)
            );
            return Err(Verdict::no(Reason::AddressNotFound, message));
        }
        let mut of_all = holders(&addresses[0]).clone();
        for address in addresses {
            of_all.retain(|n| holders(address).contains(n));
        }
        if of_all.is_empty() {
            let addresses = list(addresses);
            let message = format!("no node holds both of {addresses}: set two addresses of one node");
            return Err(Verdict::no(Reason::AddressesApart, message));
        }
        self.fit_of(of_all.into_iter(), &EgressAddresses::Given(addresses.to_vec()))
    }

    /// Those of the nodes allowed that can be the gateway, each with its addresses.
    fn fit_of(
        &self,
        allowed: impl Iterator<Item = &'a str>,
        with: &EgressAddresses,
    ) -> Result<Fit<'a>, Verdict> {
        let mut fit = Fit::new();
        let mut unfit: BTreeMap<Unfit, Vec<&str>> = BTreeMap::new();
        for node in allowed {
            match self.addresses(node, with) {
                Ok(addresses) => {
                    fit.insert(node, addresses);
                }
                Err(why) => unfit.entry(why).or_default().push(node),
            }
        }
        if !fit.is_empty() {
            return Ok(fit);
        }
        Err(match unfit.pop_first() {
            None => Verdict::no(
                Reason::NoGatewayNode,
                "no node has the labels of nodeSelector: label a node, or change the selector",
            ),
            Some((why, nodes)) => why.verdict(&nodes, with),
        })
    }

    fn addresses(&self, node: &str, with: &EgressAddresses) -> Result<Vec<IpAddr>, Unfit> {
        let known = self.world.nodes.get(node);
        if known.is_none_or(|n| n.underlay(self.underlay).is_none()) {
            return Err(Unfit::NoUnderlay);
        }
        let internal_ips = known.map_or(&[][..], |n| &n.internal_ips);
        let interfaces = self.world.interfaces(node);
        let found = match with {
            EgressAddresses::Given(addresses) => {
                let holds = |a: &IpAddr| self.holders.get(a).is_some_and(|h| h.contains(node));
                return match addresses.iter().all(holds) {
                    true => Ok(addresses.clone()),
                    false => Err(Unfit::NoAddress),
                };
            }
            EgressAddresses::OfInterface(_) if interfaces.is_empty() => {
                return Err(Unfit::AgentNotReporting);
            }
            EgressAddresses::OfInterface(name) => {
                let interface = interfaces.iter().find(|i| i.name == *name);
                let addresses = &interface.ok_or(Unfit::NoInterface)?.addresses;
                BOTH.map(|family| first_of(family, addresses))
            }
            EgressAddresses::OfDefaultRoute if interfaces.is_empty() => {
                BOTH.map(|family| first_of(family, internal_ips))
            }
            EgressAddresses::OfDefaultRoute => BOTH.map(|family| by_default_route(family, interfaces)),
        };
        let found: Vec<IpAddr> = found.into_iter().flatten().collect();
        if found.is_empty() {
            return Err(Unfit::NoAddress);
        }
        Ok(found)
    }
}

/// Nodes that can be the gateway, with the addresses they would send with.
pub type Fit<'a> = BTreeMap<&'a str, Vec<IpAddr>>;

const BOTH: [Family; 2] = [Family::IPv4, Family::IPv6];

impl Unfit {
    fn verdict(self, nodes: &[&str], with: &EgressAddresses) -> Verdict {
        let names = some_of(nodes.iter().copied());
        match (self, with) {
            (Self::AgentNotReporting, _) => Verdict::no(
                Reason::AgentNotReporting,
                format!("the agents of {names} have not yet reported their interfaces: see that they run"),
            ),
            (Self::NoInterface, EgressAddresses::OfInterface(name)) => Verdict::no(
                Reason::InterfaceNotFound,
                format!("none of {names} has an interface {name}: set interface to one that they have"),
            ),
            (Self::NoUnderlay, _) => Verdict::no(
                Reason::NoUnderlay,
                format!("none of {names} has an InternalIP of the cluster's first family to tunnel to"),
            ),
            (_, EgressAddresses::Given(addresses)) => Verdict::no(
                Reason::AddressNotFound,
                format!(
                    "none of {names} holds {}: add that to an interface of one, or change the selector",
                    list(addresses)
                ),
            ),
            (_, EgressAddresses::OfInterface(name)) => Verdict::no(
                Reason::AddressNotFound,
                format!("interface {name} of {names} has no address: add one, or choose another interface"),
            ),
            (_, EgressAddresses::OfDefaultRoute) => Verdict::no(
                Reason::AddressNotFound,
                format!("{names} have no address on a default route's interface: set interface or egressIP"),
            ),
        }
    }
}

fn first_of(family: Family, addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(|a| Family::from(*a) == family)
}

fn by_default_route(family: Family, interfaces: &[NodeInterface]) -> Option<IpAddr> {
    let routed = interfaces.iter().filter(|i| i.default_route.contains(&family));
    routed.filter_map(|i| first_of(family, &i.addresses)).next()
}

/// Addresses, for a message.
pub fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(" and ")
}

#[cfg(test)]
mod tests {
    use egressnat_crds::EgressNATPolicyStatus;
    use egressnat_crds::policy::GatewayStatus;

    use super::super::gateways;
    use super::*;
    use crate::testing;
    use crate::valid::ValidPolicy;

    /// Nodes `a` and `b` have label `egress`, `c` has not; `b` is not Ready; the agent of `c` reports `eth1`.
    const WORLD: &str = r#"
kind: Node
metadata: {name: a, uid: a, labels: {egress: "yes"}}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}, {type: InternalIP, address: "fc00::1"}, {type: ExternalIP, address: 198.51.100.1}], conditions: [{type: Ready, status: "True"}]}
---
kind: Node
metadata: {name: b, uid: b, labels: {egress: "yes"}}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: InternalIP, address: "fc00::2"}], conditions: [{type: Ready, status: "False"}]}
---
kind: Node
metadata: {name: c, uid: c}
status: {addresses: [{type: InternalIP, address: 172.18.0.3}, {type: InternalIP, address: "fc00::3"}], conditions: [{type: Ready, status: "True"}]}
---
kind: Node
metadata: {name: d, uid: d}
status: {addresses: [{type: InternalIP, address: "fc00::4"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressPlan
metadata: {name: c, uid: c, generation: 1}
spec: {}
status:
  interfaces:
  - {name: eth0, addresses: [172.18.0.3], defaultRoute: [IPv4]}
  - {name: eth1, addresses: [192.0.2.3, 192.0.2.33, "2001:db8::3"]}
  - {name: eth2, addresses: []}
"#;

    fn resolve(gateway: &str, current: Option<&str>) -> Resolution {
        let spec = format!("{{selectors: [{{podSelector: {{}}}}], {gateway}}}");
        let policy = ValidPolicy::parse(&serde_yaml_ng::from_str(&spec).unwrap()).unwrap();
        let world = testing::world(WORLD);
        let status = EgressNATPolicyStatus {
            gateways: current.map(status_of).into_iter().collect(),
            ..EgressNATPolicyStatus::default()
        };
        let mut resolutions = gateways::resolve(&Resolver::new(&world), &policy, &status);
        resolutions.remove(0)
    }

    fn status_of(node: &str) -> GatewayStatus {
        GatewayStatus {
            node: node.into(),
            ..GatewayStatus::default()
        }
    }

    fn chosen(gateway: &str, current: Option<&str>) -> (String, String, Reason) {
        let resolution = resolve(gateway, current);
        let gateway = resolution.gateway.unwrap();
        (gateway.node, list(&gateway.addresses), resolution.verdict.reason)
    }

    #[test]
    fn the_holder_of_the_address_is_the_gateway() {
        let (node, addresses, reason) = chosen("egressSourceIP: 172.18.0.1", None);
        assert_eq!(
            (node.as_str(), addresses.as_str(), reason),
            ("a", "172.18.0.1", Reason::GatewayReady)
        );
        let (node, addresses, _) = chosen("egressSourceIPs: ['2001:db8::3', 192.0.2.33]", None);
        assert_eq!(
            (node.as_str(), addresses.as_str()),
            ("c", "192.0.2.33 and 2001:db8::3")
        );
    }

    #[test]
    fn the_only_holder_is_the_gateway_even_when_it_is_not_ready() {
        let (node, _, reason) = chosen("egressSourceIP: 172.18.0.2", None);
        assert_eq!((node.as_str(), reason), ("b", Reason::GatewayNotReady));
    }

    #[test]
    fn the_current_gateway_stays_while_it_is_ready_and_allowed() {
        let all = "egressGateway: {nodeSelector: {}}";
        assert_eq!(chosen(all, None).0, "a");
        assert_eq!(chosen(all, Some("c")).0, "c");
        assert_eq!(chosen(all, Some("b")).0, "a", "not Ready");
        assert_eq!(chosen(all, Some("gone")).0, "a");
        let labelled = "egressGateway: {nodeSelector: {matchLabels: {egress: 'yes'}}}";
        assert_eq!(chosen(labelled, Some("c")).0, "a", "not allowed");
    }

    #[test]
    fn addresses_follow_from_the_interface_or_the_default_route() {
        let addresses = |gateway: &str| chosen(gateway, Some("c")).1;
        assert_eq!(
            addresses("egressGateway: {nodeSelector: {}, interface: eth1}"),
            "192.0.2.3 and 2001:db8::3"
        );
        assert_eq!(addresses("egressGateway: {nodeSelector: {}}"), "172.18.0.3");
        assert_eq!(
            chosen("egressGateway: {nodeSelector: {}}", Some("a")).1,
            "172.18.0.1 and fc00::1",
            "internal addresses while the agent has not reported"
        );
        assert_eq!(
            addresses("egressGateway: {nodeSelector: {}, egressIP: 192.0.2.33}"),
            "192.0.2.33"
        );
    }

    #[test]
    fn without_a_gateway_the_reason_says_why() {
        let labelled = "egressGateway: {nodeSelector: {matchLabels: {egress: 'yes'}}";
        let unlabelled =
            "egressGateway: {nodeSelector: {matchExpressions: [{key: egress, operator: DoesNotExist}]}";
        for (gateway, reason, says) in [
            (
                "egressSourceIP: 192.0.2.99".into(),
                Reason::AddressNotFound,
                "no node holds 192.0.2.99",
            ),
            (
                "egressSourceIP: 198.51.100.1".into(),
                Reason::AddressNotFound,
                "198.51.100.1",
            ),
            (
                "egressSourceIPs: [172.18.0.1, 'fc00::4']".into(),
                Reason::AddressesApart,
                "fc00::4",
            ),
            (
                "egressSourceIP: 'fc00::4'".into(),
                Reason::NoUnderlay,
                "none of d",
            ),
            (
                "egressGateway: {nodeSelector: {matchLabels: {no: node}}}".into(),
                Reason::NoGatewayNode,
                "label a node",
            ),
            (
                format!("{labelled}, egressIP: 172.18.0.3}}"),
                Reason::AddressNotFound,
                "none of a, b holds",
            ),
            (
                format!("{labelled}, interface: eth1}}"),
                Reason::AgentNotReporting,
                "agents of a, b",
            ),
            (
                format!("{unlabelled}, interface: eth7}}"),
                Reason::InterfaceNotFound,
                "eth7",
            ),
            (
                format!("{unlabelled}, interface: eth2}}"),
                Reason::AddressNotFound,
                "eth2",
            ),
        ] {
            let resolution = resolve(&gateway, None);
            assert_eq!(resolution.gateway, None, "{gateway}");
            assert_eq!(resolution.verdict.reason, reason, "{gateway}");
            assert!(!resolution.verdict.holds);
            assert!(
                resolution.verdict.message.contains(says),
                "{}",
                resolution.verdict.message
            );
        }
    }
}
