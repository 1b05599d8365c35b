//! The gateway role: what peers send here.

use std::net::IpAddr;

use egressnat_crds::plan::{GatewayRole, Peer, PlanPolicy};

use super::table::*;
use super::{Context, FAMILIES, digit};
use crate::model::{
    Cmp, Data, DataType, Direction, ElementKey, Key, KeyType, MacAddr, Rule, Ruleset, Statement,
};
use crate::owned::{self, Drop, GBP_ID_MASK, PORTS, RoutingMark, ports_chain};

/// Up to how many ranges of a peer are compared one by one; above, a set is looked up.
const INLINE_RANGES: usize = 4;

impl Context<'_> {
    /// Everything of the gateway role: SNAT for all, and with a tunnel, what comes out of it.
    pub(super) fn gateway(&self, table: &mut Ruleset) {
        self.addresses(table);
        if self.tunnel.is_some() {
            self.peers(table);
            self.tunnel_ids(table);
        }
        if self.serves_peers() {
            table.chain(
                "reply",
                vec![rule([self.set_routing_mark(RoutingMark::Reply), accept()])],
            );
        }
    }

    /// `id -> address` of policies that give any port, and `id -> chain` of those that give some.
    fn addresses(&self, table: &mut Ruleset) {
        for family in FAMILIES {
            let (_, data) = address_type(family);
            let of_any_port = self.roles().filter(|(_, role)| role.source_ports.is_none());
            let elements = of_any_port.flat_map(|(id, role)| {
                let addresses = self.held(role).filter(move |a| family == (*a).into());
                addresses.map(move |a| (ElementKey::Mark(owned::ct_mark(id)), Data::Addr(a)))
            });
            table.hash(format!("snat{}", digit(family)), KeyType::Mark, data, elements);
        }
        let with_ports = self
            .roles()
            .filter_map(|(id, role)| Some((id, role, role.source_ports?)));
        let mut elements = Vec::new();
        for (id, role, ports) in with_ports {
            let snat = self.held(role).map(|a| rule([Statement::SnatPorts(a, ports)]));
            table.chain(
                ports_chain(id),
                snat.chain([drop_rule(Drop::NoAddress)]).collect(),
            );
            elements.push((ElementKey::Mark(owned::ct_mark(id)), goto_data(ports_chain(id))));
        }
        if !elements.is_empty() {
            table.hash(PORTS, KeyType::Mark, DataType::Verdict, elements);
        }
    }

    /// The policies that this node is the gateway of, by id.
    fn roles(&self) -> impl Iterator<Item = (u16, &GatewayRole)> {
        let policies = self.plan.policies.iter();
        policies.filter_map(|policy| Some((policy.id, policy.gateway.as_ref()?)))
    }

    /// A role's addresses. One that the node does not hold is left out: its packets are dropped.
    fn held(&self, role: &GatewayRole) -> impl Iterator<Item = IpAddr> {
        let held = role.addresses.iter().filter(|a| self.facts.addresses.contains(a));
        held.copied()
    }

    /// To the chain of a policy that gives some ports; the rest goes on.
    pub(super) fn by_ports(&self) -> Option<Rule> {
        let any = self.roles().any(|(_, role)| role.source_ports.is_some());
        any.then(|| rule([Statement::Vmap(id_key(), PORTS.into())]))
    }

    /// A chain per peer, found by its MAC address: replies, and the inner sources it may send.
    fn peers(&self, table: &mut Ruleset) {
        let chain = |peer: &Peer| {
            format!(
                "peer_{}",
                MacAddr::of_underlay(peer.underlay).to_string().replace(':', "")
            )
        };
        let elements = self.plan.peers.iter().map(|peer| {
            (
                ElementKey::Mac(MacAddr::of_underlay(peer.underlay)),
                goto_data(chain(peer)),
            )
        });
        table.hash("peers", KeyType::EtherAddr, DataType::Verdict, elements);
        for peer in &self.plan.peers {
            let name = chain(peer);
            let is_reply = Statement::CtDirection(Direction::Reply);
            let mut rules = vec![rule([is_reply, goto("tunnel_reply")])];
            rules.extend(source_rules(table, &name, peer));
            rules.push(drop_if([Statement::CtUnplaced], Drop::Unplaced));
            rules.push(drop_rule(Drop::Spoofed));
            table.chain(name, rules);
        }
    }

    /// `id in the tunnel's header -> chain`, and per policy the chain that saves the id.
    fn tunnel_ids(&self, table: &mut Ruleset) {
        let served = || self.plan.policies.iter().filter(|p| p.gateway.is_some());
        let elements = served().map(|p| (ElementKey::Mark(p.id.into()), goto_data(format!("in_{}", p.id))));
        table.hash("tunnel_ids", KeyType::Mark, DataType::Verdict, elements);
        table.chain(
            "tunnel_id",
            vec![
                rule([Statement::Vmap(Key::MetaMark(GBP_ID_MASK), "tunnel_ids".into())]),
                drop_rule(Drop::UnknownId),
            ],
        );
        for policy in served() {
            let mut rules = self.leave(policy, ct_mark(Cmp::Eq, owned::ct_mark(policy.id)));
            rules.push(drop_if([Statement::CtUnplaced], Drop::Unplaced));
            // Another policy's translation is bound to this connection: it would leave with that address.
            rules.push(drop_if([has_id()], Drop::Stale));
            rules.extend(self.leave(policy, save_id(policy.id)));
            table.chain(format!("in_{}", policy.id), rules);
        }
    }

    /// Out by the way of the packet's family, `first` allowing: one rule where both families have one way.
    fn leave(&self, policy: &PlanPolicy, first: Statement) -> Vec<Rule> {
        let ways = FAMILIES.map(|family| (family, self.way_out(policy, family)));
        match ways {
            [(_, way), (_, other)] if way == other => vec![rule([first, self.leave_mark(way), accept()])],
            _ => ways
                .map(|(family, way)| {
                    let of_family = Statement::NfProto(family);
                    rule([of_family, first.clone(), self.leave_mark(way), accept()])
                })
                .into(),
        }
    }
}

/// The rules that let a peer's own inner sources pass.
fn source_rules(table: &mut Ruleset, chain: &str, peer: &Peer) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let ranges: Vec<_> = peer.ranges.iter().filter(|r| family == r.addr().into()).collect();
        if ranges.len() <= INLINE_RANGES {
            rules.extend(
                ranges
                    .iter()
                    .map(|r| rule([Statement::SaddrIn(**r), goto("tunnel_id")])),
            );
        } else {
            let name = format!("{chain}_{}", digit(family));
            let elements = ranges
                .iter()
                .map(|r| (ElementKey::Range((**r).into()), Data::None));
            table.intervals(name.clone(), address_type(family).0, DataType::None, elements);
            rules.push(rule([Statement::In(Key::Saddr(family), name), goto("tunnel_id")]));
        }
    }
    rules
}
