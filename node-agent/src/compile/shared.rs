//! Base chains, and what source and gateway share.

use crate::model::rule::Masked;
use crate::model::{
    BaseChain, Chain, ChainKind, Cmp, Data, DataType, Direction, ElementKey, Hook, Key, Link, Rule, Ruleset,
    Statement, Tunnel,
};
use crate::owned::{Drop, FILTER_PRIORITY, GBP_MASK, RoutingMark};

use super::table::*;
use super::{CompileError, Context, FAMILIES, digit};

/// Hook priorities. Raw: before conntrack. Filter: right after DNAT at -100, so that a Service's address is
/// judged by what it leads to. NAT: before every CNI's masquerade, none of which is known below 90.
const RAW: i32 = -300;
pub(super) const FILTER: i32 = FILTER_PRIORITY;
const NAT: i32 = 50;

/// Length of IP and TCP headers, by which the MSS is below the MTU (RFC 9293, section 3.7.1).
const HEADERS: [u32; 2] = [40, 60];

/// What drops all that comes out of the tunnel, as long as no other rule knows the device: a new one has a new index.
pub fn guard(tunnel: &Link) -> Chain {
    Chain {
        base: Some(BaseChain {
            kind: ChainKind::Filter,
            hook: Hook::Prerouting,
            priority: RAW,
        }),
        rules: vec![drop_if([iif(tunnel)], Drop::UnknownId)],
    }
}

impl Context<'_> {
    /// The whole table. Where no policy concerns the node, its packets meet the masquerade alone, and for a while what
    /// earlier policies' connections need.
    pub(super) fn ruleset(&self) -> Result<Ruleset, CompileError> {
        let mut table = match (self.has_part(), &self.facts.released) {
            (true, _) => self.policies()?,
            (false, Some(_)) => self.only_released(),
            (false, None) => Ruleset::default(),
        };
        if self.has_part() || self.masquerades() {
            self.postrouting(&mut table);
        }
        self.masquerade(&mut table);
        Ok(table)
    }

    fn policies(&self) -> Result<Ruleset, CompileError> {
        let counters = Drop::by_rule().map(|d| d.counter().to_string()).collect();
        let mut table = Ruleset {
            counters,
            ..Ruleset::default()
        };
        self.base_chains(&mut table);
        self.forward(&mut table);
        self.egress(&mut table);
        self.source(&mut table)?;
        if let Some((tunnel, _)) = &self.tunnel {
            self.tunnel_port(&mut table, tunnel);
            out_of_tunnel(&mut table);
        }
        self.gateway(&mut table);
        self.exit_chains(&mut table);
        Ok(table)
    }

    fn base_chains(&self, table: &mut Ruleset) {
        let mut rules = Vec::new();
        if let Some(link) = self.link() {
            rules.push(rule([iif(link), goto("from_tunnel")]));
        }
        rules.push(rule([has_id(), goto("decided")]));
        for family in FAMILIES {
            let pods = format!("pods{}", digit(family));
            rules.push(rule([Statement::In(Key::Saddr(family), pods), goto("selected")]));
        }
        let own_links = self.own_links(table);
        rules.extend(self.released(table, own_links));
        table.base("prerouting", ChainKind::Filter, Hook::Prerouting, FILTER, rules);

        let mut route: Vec<Rule> = FAMILIES
            .iter()
            .map(|f| {
                rule([
                    Statement::NfProto(*f),
                    Statement::Vmap(id_key(), format!("ids{}", digit(*f))),
                ])
            })
            .collect();
        route.push(drop_rule(Drop::NoGateway));
        let reply = if self.serves_peers() {
            goto("reply")
        } else {
            accept()
        };
        let mut decided = vec![rule([Statement::CtDirection(Direction::Reply), reply])];
        decided.extend(route.iter().cloned());
        table.chain("decided", decided);
        table.chain("route", route);
        table.chain(
            "local",
            vec![rule([self.set_routing_mark(RoutingMark::Local), accept()])],
        );
    }

    /// On the way out: into the tunnel with the id as mark, or by this node if the routing mark says so.
    fn forward(&self, table: &mut Ruleset) {
        let guard = rule([has_id(), goto("captured")]);
        table.base("forward", ChainKind::Filter, Hook::Forward, FILTER, vec![guard]);
        let mut captured = Vec::new();
        let mut out = Vec::new();
        if let Some((tunnel, link)) = &self.tunnel {
            captured.push(rule([oif(link), goto("to_tunnel")]));
            out.push(rule([Statement::TcpSyn, iif(link), jump("clamp")]));
            let no_id = Statement::SetMetaMark { keep: 0, bits: 0 };
            let to_tunnel = vec![
                rule([Statement::TcpSyn, jump("clamp")]),
                rule([Statement::CtDirection(Direction::Reply), no_id, accept()]),
                // The routing mark must be gone before the device looks up the outer route, or the packet loops.
                rule([id_to_wire(), accept()]),
            ];
            table.chain("to_tunnel", to_tunnel);
            table.chain("clamp", clamp(tunnel));
        }
        captured.push(rule([self.has_routing_mark(RoutingMark::Local), goto("out")]));
        captured.extend(self.by_exit());
        captured.push(rule([Statement::CtDirection(Direction::Reply), goto("out")]));
        captured.push(drop_rule(Drop::WrongDoor));
        table.chain("captured", captured);
        let unmark = Statement::SetMetaMark {
            keep: !self.numbers.mark_mask,
            bits: 0,
        };
        out.push(rule([unmark, accept()]));
        table.chain("out", out);
    }

    /// NAT: a binding of ours comes first, so that no later masquerade applies.
    fn postrouting(&self, table: &mut Ruleset) {
        let mut rules = Vec::new();
        if let Some(link) = self.link() {
            rules.push(rule([oif(link), goto("keep_source")]));
            table.chain(
                "keep_source",
                FAMILIES.map(|f| rule([Statement::SnatToSaddr(f)])).into(),
            );
        }
        rules.extend(self.has_part().then(|| rule([has_id(), goto("egress")])));
        rules.extend(self.default_egress());
        table.base("postrouting", ChainKind::Nat, Hook::Postrouting, NAT, rules);
    }

    /// Out by this node: with the policy's address, or as any other pod.
    fn egress(&self, table: &mut Ruleset) {
        let mut egress = Vec::new();
        for family in FAMILIES {
            let as_node = Statement::In(id_key(), format!("as_node{}", digit(family)));
            egress.push(rule([Statement::NfProto(family), as_node, self.as_any_other()]));
        }
        egress.extend(self.by_ports());
        for family in FAMILIES {
            egress.push(rule([Statement::SnatMap(
                family,
                id_key(),
                format!("snat{}", digit(family)),
            )]));
        }
        egress.push(drop_rule(Drop::NoAddress));
        table.chain("egress", egress);
    }

    /// The tunnel's UDP is for peers only, and conntrack need not know of it.
    fn tunnel_port(&self, table: &mut Ruleset, tunnel: &Tunnel) {
        let port = Statement::UdpDport(tunnel.port);
        // A device sends to one family only, its own address's: the other would cost each packet a rule.
        let family = tunnel.local.into();
        let peers = |key| Statement::In(key, "underlay".into());
        let of_family = self.plan.peers.iter().map(|p| p.underlay);
        let elements = of_family
            .filter(|a| family == (*a).into())
            .map(|a| (ElementKey::Addr(a), Data::None));
        table.hash("underlay", address_type(family).0, DataType::None, elements);
        let in_raw = vec![rule([port.clone(), goto("tunnel_port")])];
        table.base("raw_prerouting", ChainKind::Filter, Hook::Prerouting, RAW, in_raw);
        let peer = rule([
            iif(&tunnel.underlay),
            peers(Key::Saddr(family)),
            Statement::Notrack,
            accept(),
        ]);
        // The device takes what comes to any of the node's addresses; what only passes by is not ours.
        let stranger = drop_if([Statement::FibDaddrLocal], Drop::NotPeer);
        table.chain("tunnel_port", vec![peer, stranger]);
        let to = rule([port, peers(Key::Daddr(family)), Statement::Notrack]);
        table.base("raw_output", ChainKind::Filter, Hook::Output, RAW, vec![to]);
    }

    /// The routing mark compared.
    pub(super) fn has_routing_mark(&self, mark: RoutingMark) -> Statement {
        Statement::MetaMark(Masked {
            mask: self.numbers.mark_mask,
            cmp: Cmp::Eq,
            value: self.numbers.mark(mark),
        })
    }

    /// Replaces the routing mark.
    pub(super) fn set_routing_mark(&self, mark: RoutingMark) -> Statement {
        Statement::SetMetaMark {
            keep: !self.numbers.mark_mask,
            bits: self.numbers.mark(mark),
        }
    }

    /// Clears what the tunnel's header left in the packet mark and sets the routing mark.
    pub(super) fn leave_mark(&self, mark: RoutingMark) -> Statement {
        Statement::SetMetaMark {
            keep: !(self.numbers.mark_mask | GBP_MASK),
            bits: self.numbers.mark(mark),
        }
    }

    /// Whether this node is the gateway of a peer's pods.
    pub(super) fn serves_peers(&self) -> bool {
        self.tunnel.is_some() && self.plan.peers.iter().any(|p| !p.ranges.is_empty())
    }
}

/// What comes out of the tunnel: each peer has a chain, which lets replies to this node's pods pass.
fn out_of_tunnel(table: &mut Ruleset) {
    table.chain(
        "from_tunnel",
        vec![
            rule([Statement::Vmap(Key::EtherSaddr, "peers".into())]),
            drop_rule(Drop::NotPeer),
        ],
    );
    let unmark = Statement::SetMetaMark {
        keep: !GBP_MASK,
        bits: 0,
    };
    let stray = drop_if([ct_mark(Cmp::Eq, 0)], Drop::StrayReply);
    table.chain("tunnel_reply", vec![stray, rule([unmark, accept()])]);
}

/// A SYN's MSS to the tunnel's MTU. Both directions pass: clamping one alone leaves the other hanging where ICMP
/// is blocked.
fn clamp(tunnel: &Tunnel) -> Vec<Rule> {
    let size = |headers| u16::try_from(tunnel.mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
    let rules = [0, 1].map(|i| {
        rule([
            Statement::NfProto(FAMILIES[i]),
            Statement::ClampMss(size(HEADERS[i])),
        ])
    });
    rules.into()
}
