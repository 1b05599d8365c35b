//! The table as the kernel runs it, for the first packet of a connection and the first that comes back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_agent::model::rule::Masked;
use egressnat_agent::model::{
    BaseChain, ChainKind, Cmp, Data, Direction, ElementKey, Hook, Key, Link, MacAddr, Rule, Ruleset,
    Statement, Verdict,
};
use egressnat_crds::plan::Family;
use egressnat_crds::ports::PortRange;

/// What the rules look at and change.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The port of a datagram; without one, it is a SYN.
    pub udp_port: Option<u16>,
    pub iif: Option<Link>,
    pub oif: Option<Link>,
    pub ether_source: Option<MacAddr>,
    pub mark: u32,
    /// The connection's mark.
    pub ct_mark: u32,
    /// Conntrack was told to leave it alone.
    pub untracked: bool,
    /// The source address that a NAT chain has bound to the connection.
    pub snat: Option<IpAddr>,
    /// The ports of which it has one, if not any.
    pub snat_ports: Option<PortRange>,
    /// It comes back, from the side that did not open the connection.
    pub is_reply: bool,
}

impl Packet {
    /// A packet that nobody has seen yet.
    pub fn new(source: IpAddr, destination: IpAddr, udp_port: Option<u16>) -> Self {
        Self {
            source,
            destination,
            udp_port,
            iif: None,
            oif: None,
            ether_source: None,
            mark: 0,
            ct_mark: 0,
            untracked: false,
            snat: None,
            snat_ports: None,
            is_reply: false,
        }
    }

    /// What comes back, once conntrack has undone the translation.
    pub fn reply(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            mark: 0,
            iif: None,
            oif: None,
            ether_source: None,
            is_reply: true,
            ..self.clone()
        }
    }

    fn is_of(&self, family: Family) -> bool {
        Family::from(self.source) == family
    }
}

/// The packet is dropped, counted under this name if under any.
#[derive(Debug)]
pub struct Dropped(pub Option<String>);

/// How a chain ends.
enum End {
    /// Without a verdict.
    Ran,
    Accept,
    Drop(Dropped),
}

/// A table with what it asks the kernel.
pub struct Table<'a> {
    pub ruleset: &'a Ruleset,
    /// The node's own addresses.
    pub local: &'a BTreeSet<IpAddr>,
}

impl Table<'_> {
    /// Takes a packet through all chains of a hook.
    pub fn run(&self, hook: Hook, packet: &mut Packet) -> Result<(), Dropped> {
        let bases = self
            .ruleset
            .chains
            .iter()
            .filter_map(|(name, c)| Some((name, c.base?)));
        let mut bases: Vec<(&String, BaseChain)> = bases.filter(|(_, base)| base.hook == hook).collect();
        bases.sort_by_key(|(_, base)| order(base));
        for (name, base) in bases {
            // A NAT chain sees the first packet of a connection that is not bound yet.
            if base.kind == ChainKind::Nat && (packet.untracked || packet.is_reply || packet.snat.is_some()) {
                continue;
            }
            if let End::Drop(dropped) = self.chain(name, packet) {
                return Err(dropped);
            }
        }
        Ok(())
    }

    fn chain(&self, name: &str, packet: &mut Packet) -> End {
        for rule in &self.ruleset.chains[name].rules {
            let Some((verdict, counter)) = self.rule(rule, packet) else {
                continue;
            };
            match verdict {
                Verdict::Accept => return End::Accept,
                Verdict::Drop => return End::Drop(Dropped(counter)),
                Verdict::Return => return End::Ran,
                Verdict::Goto(chain) => return self.chain(&chain, packet),
                Verdict::Jump(chain) => match self.chain(&chain, packet) {
                    End::Ran => {}
                    end => return end,
                },
            }
        }
        End::Ran
    }

    /// Runs a rule's statements up to a verdict, or to the first that does not match.
    fn rule(&self, Rule(statements): &Rule, packet: &mut Packet) -> Option<(Verdict, Option<String>)> {
        let mut counter = None;
        for statement in statements {
            match statement {
                Statement::Counter(name) => counter = Some(name.clone()),
                Statement::Verdict(verdict) => return Some((verdict.clone(), counter)),
                Statement::Vmap(key, map) => {
                    return Some((self.vmap(self.key(*key, packet)?, map)?, counter));
                }
                Statement::MapVmap(key, map, vmap) => {
                    let Some(Data::Mark(mark)) = self.find(map, self.key(*key, packet)?) else {
                        return None;
                    };
                    return Some((self.vmap(ElementKey::Mark(*mark), vmap)?, counter));
                }
                Statement::SnatToSaddr(family) => {
                    packet.snat = packet.is_of(*family).then_some(packet.source);
                    return packet.snat.map(|_| (Verdict::Accept, counter));
                }
                Statement::SnatMap(family, ..) if !packet.is_of(*family) => return None,
                Statement::SnatMap(_, key, map) => {
                    let Some(Data::Addr(address)) = self.find(map, self.key(*key, packet)?) else {
                        return None;
                    };
                    packet.snat = Some(*address);
                    return Some((Verdict::Accept, counter));
                }
                // These worlds' installations ask for none.
                Statement::Masquerade => return None,
                Statement::SnatPorts(address, ports) => {
                    packet.is_of((*address).into()).then_some(())?;
                    (packet.snat, packet.snat_ports) = (Some(*address), Some(*ports));
                    return Some((Verdict::Accept, counter));
                }
                other if !self.matches(other, packet) => return None,
                other => act(other, packet),
            }
        }
        None
    }

    fn vmap(&self, key: ElementKey, map: &str) -> Option<Verdict> {
        match self.find(map, key)? {
            Data::Verdict(verdict) => Some(verdict.clone()),
            _ => None,
        }
    }

    /// Whether a statement lets the rule go on.
    fn matches(&self, statement: &Statement, packet: &Packet) -> bool {
        match statement {
            Statement::Iif(link) => packet.iif.as_ref() == Some(link),
            Statement::Oif(link) => packet.oif.as_ref() == Some(link),
            Statement::NfProto(family) => packet.is_of(*family),
            Statement::UdpDport(port) => packet.udp_port == Some(*port),
            Statement::TcpSyn => packet.udp_port.is_none(),
            // Conntrack has an entry of the connection, unless told not to.
            Statement::CtUnplaced => packet.untracked,
            // These packets are their connections' first.
            Statement::CtConfirmed | Statement::TcpMidstream => false,
            Statement::CtUnconfirmed => !packet.untracked,
            // These worlds' pods have one address of each family, and send with it.
            Statement::FibSaddrMissing => false,
            Statement::CtDirection(direction) => {
                !packet.untracked && packet.is_reply == (*direction == Direction::Reply)
            }
            Statement::CtMark(masked) => !packet.untracked && compare(*masked, packet.ct_mark),
            Statement::MetaMark(masked) => compare(*masked, packet.mark),
            Statement::SaddrIn(net) => net.contains(&packet.source),
            Statement::FibDaddrLocal => self.local.contains(&packet.destination),
            Statement::In(key, set) => self
                .key(*key, packet)
                .is_some_and(|k| self.find(set, k).is_some()),
            // Actions.
            _ => true,
        }
    }

    /// What is looked up, if the packet has it.
    fn key(&self, key: Key, packet: &Packet) -> Option<ElementKey> {
        match key {
            Key::Saddr(family) => packet.is_of(family).then_some(ElementKey::Addr(packet.source)),
            Key::Daddr(family) => packet
                .is_of(family)
                .then_some(ElementKey::Addr(packet.destination)),
            Key::EtherSaddr => packet.ether_source.map(ElementKey::Mac),
            Key::Iif => packet.iif.as_ref().map(|link| ElementKey::Link(link.index)),
            Key::CtMark(mask) => (!packet.untracked).then_some(ElementKey::Mark(packet.ct_mark & mask)),
            Key::MetaMark(mask) => Some(ElementKey::Mark(packet.mark & mask)),
        }
    }

    fn find(&self, set: &str, key: ElementKey) -> Option<&Data> {
        let set = &self.ruleset.sets[set];
        match key {
            ElementKey::Addr(address) if set.interval => {
                let inside = |k: &ElementKey| matches!(k, ElementKey::Range(r) if r.contains(address));
                set.elements.iter().find(|(k, _)| inside(k)).map(|(_, data)| data)
            }
            key => set.elements.get(&key),
        }
    }
}

/// Changes what an action changes.
fn act(statement: &Statement, packet: &mut Packet) {
    match statement {
        Statement::SetCtMark { keep, bits } => packet.ct_mark = packet.ct_mark & keep | bits,
        Statement::SetMetaMark { keep, bits } => packet.mark = packet.mark & keep | bits,
        Statement::MetaMarkFromCtMark { mask, shift } => packet.mark = (packet.ct_mark & mask) >> shift,
        Statement::Notrack => packet.untracked = true,
        _ => {}
    }
}

fn compare(Masked { mask, cmp, value }: Masked, mark: u32) -> bool {
    match cmp {
        Cmp::Eq => mark & mask == value,
        Cmp::Ne => mark & mask != value,
    }
}

/// A NAT chain runs where the kernel's NAT hooks in, after or before all filters; the priority orders it among
/// NAT chains.
fn order(base: &BaseChain) -> (i32, i32) {
    match (base.kind, base.hook) {
        (ChainKind::Filter, _) => (base.priority, 0),
        (ChainKind::Nat, Hook::Prerouting | Hook::Output) => (-100, base.priority),
        (ChainKind::Nat, Hook::Input | Hook::Forward | Hook::Postrouting) => (100, base.priority),
    }
}
