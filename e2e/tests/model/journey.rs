//! A connection's first packet on its way through the nodes, and the first that comes back, by the compiled rules
//! and routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_agent::model::{Hook, MacAddr};
use egressnat_agent::owned::{CT_MARK_MASK, CT_MARK_SHIFT, Drop, GBP_MASK, Numbers};
use egressnat_operator::plan::Outcome;

use crate::expected::Capture;
use crate::host::{Host, Way, hosts, tunnel, uplink, veth};
use crate::ruleset::{Dropped, Packet};
use crate::world::World;

/// All nodes, programmed.
pub struct Cluster {
    hosts: BTreeMap<String, Host>,
    /// Policies by id.
    policies: BTreeMap<u16, String>,
}

/// A packet that a node is done with.
enum Done {
    Left(Packet),
    Lost(Packet, Dropped),
}

impl Cluster {
    /// Compiles every node's plan.
    pub fn new(world: &World, outcome: &Outcome) -> Result<Self, String> {
        let policies = outcome.plans.values().flat_map(|p| &p.policies);
        let policies = policies.map(|p| (p.id, p.name.clone()));
        Ok(Self {
            hosts: hosts(world, outcome)?,
            policies: policies.collect(),
        })
    }

    /// Whether there is a node of this name.
    pub fn has(&self, node: &str) -> bool {
        self.hosts.contains_key(node)
    }

    /// Whether an address is the node's own.
    pub fn is_local(&self, node: &str, address: IpAddr) -> bool {
        self.hosts[node].facts.addresses.contains(&address)
    }

    /// What becomes of a packet that a pod of `node` sends. An error where the way is one that no verdict has.
    pub fn sent_by_pod(&self, node: &str, mut packet: Packet) -> Result<Option<Capture>, String> {
        let source = &self.hosts[node];
        packet.iif = Some(veth());
        let way = match source.run(Hook::Prerouting, &mut packet) {
            Err(dropped) => return self.verdict(source, source, Done::Lost(packet, dropped)),
            Ok(()) => source.route(&packet),
        };
        match way {
            Way::Tunnel(via) => self.by_tunnel(source, via, packet),
            Way::Local => {
                let done = input(source, packet);
                self.verdict(source, source, done)
            }
            way => {
                let done = forward(source, &way, packet)?;
                if let Done::Left(packet) = &done {
                    self.back_from_here(source, packet)?;
                }
                self.verdict(source, source, done)
            }
        }
    }

    /// What becomes of a packet that `node` itself sends.
    pub fn sent_by_node(&self, node: &str, mut packet: Packet) -> Result<Option<Capture>, String> {
        let source = &self.hosts[node];
        packet.oif = Some(uplink());
        let sent = source.run(Hook::Output, &mut packet);
        let sent = sent.and_then(|()| source.run(Hook::Postrouting, &mut packet));
        self.verdict(source, source, done(packet, sent))
    }

    fn by_tunnel(&self, source: &Host, via: IpAddr, mut packet: Packet) -> Result<Option<Capture>, String> {
        packet.oif = Some(tunnel());
        let own = packet.source;
        let sent = source.run(Hook::Forward, &mut packet);
        if let Err(dropped) = sent.and_then(|()| source.run(Hook::Postrouting, &mut packet)) {
            return self.verdict(source, source, Done::Lost(packet, dropped));
        }
        if packet.snat != Some(own) {
            return Err(format!(
                "a CNI would translate what {} sends by the tunnel",
                source.name
            ));
        }
        let (gateway, arrived) = self.tunnel(source, via, &packet)?;
        let fresh = Packet::new(own, packet.destination, packet.udp_port);
        let mut inner = arrived.of(fresh);
        let done = match gateway.run(Hook::Prerouting, &mut inner) {
            Err(dropped) => Done::Lost(inner, dropped),
            Ok(()) => forward(gateway, &gateway.route(&inner), inner)?,
        };
        if let Done::Left(inner) = &done {
            self.back_by_tunnel(source, &packet, gateway, inner)?;
        }
        self.verdict(source, gateway, done)
    }

    /// What comes back to a node finds its pod there.
    fn back_from_here(&self, host: &Host, sent: &Packet) -> Result<(), String> {
        let (way, reply) = returned(host, sent)?;
        match way {
            Way::Main => deliver(host, reply),
            way => Err(format!("a reply to a pod of {} goes by {way:?}", host.name)),
        }
    }

    /// What comes back to the gateway goes to the pod's node by the tunnel.
    fn back_by_tunnel(
        &self,
        source: &Host,
        sent: &Packet,
        gateway: &Host,
        left: &Packet,
    ) -> Result<(), String> {
        let (way, mut reply) = returned(gateway, left)?;
        let Way::Tunnel(via) = way else {
            return Err(format!("a reply at {} goes by {way:?}", gateway.name));
        };
        reply.oif = Some(tunnel());
        let passed = gateway.run(Hook::Forward, &mut reply);
        let passed = passed.and_then(|()| gateway.run(Hook::Postrouting, &mut reply));
        passed.map_err(|dropped| format!("{} drops a reply: {dropped:?}", gateway.name))?;
        let (there, arrived) = self.tunnel(gateway, via, &reply)?;
        if there.name != source.name {
            return Err(format!("{} sends a reply to {}", gateway.name, there.name));
        }
        let mut reply = arrived.of(sent.reply());
        let passed = source.run(Hook::Prerouting, &mut reply);
        passed.map_err(|dropped| format!("{} drops a reply: {dropped:?}", source.name))?;
        match source.route(&reply) {
            Way::Main => deliver(source, reply),
            way => Err(format!("a reply to a pod of {} goes by {way:?}", source.name)),
        }
    }

    /// Takes a packet through the tunnel: the node where it comes out, and with what.
    fn tunnel(&self, source: &Host, via: IpAddr, packet: &Packet) -> Result<(&Host, Arrived), String> {
        // The outer packet has the inner one's mark: by it, it must not find the tunnel again.
        let outer = self.outer(source, via, packet.mark)?;
        if matches!(source.route(&outer), Way::Tunnel(_)) {
            return Err(format!("the tunnel of {} leads into itself", source.name));
        }
        let there = self.underlay(source, outer)?;
        let device = source.desired.net.tunnel.as_ref();
        let arrived = Arrived {
            mark: packet.mark & GBP_MASK,
            from: device.ok_or("the tunnel has no device")?.mac,
        };
        Ok((there, arrived))
    }

    /// The tunnel's own packet to a next hop: neighbour, FDB, address.
    fn outer(&self, source: &Host, via: IpAddr, mark: u32) -> Result<Packet, String> {
        let net = &source.desired.net;
        let neighbour = net.neighbours.iter().find(|n| n.address == via);
        let mac = neighbour.ok_or(format!("{via} is no neighbour"))?.mac;
        let fdb = net.fdb.iter().find(|f| f.mac == mac);
        let remote = fdb.ok_or(format!("{mac} is not in the FDB"))?.remote;
        let device = net.tunnel.as_ref().ok_or("the tunnel has no device")?;
        let mut outer = Packet::new(device.local, remote, Some(device.port));
        outer.mark = mark;
        Ok(outer)
    }

    /// The node that the outer packet reaches. It must be taken in there, and be tracked nowhere.
    fn underlay(&self, source: &Host, mut outer: Packet) -> Result<&Host, String> {
        outer.oif = Some(uplink());
        let by_source = source.run(Hook::Output, &mut outer);
        if by_source.is_err() || !outer.untracked {
            return Err(format!("{} tracks or drops its tunnel's packets", source.name));
        }
        let mut hosts = self.hosts.values();
        let there = hosts.find(|h| h.plan.underlay == Some(outer.destination));
        let there = there.ok_or(format!("nobody has {}", outer.destination))?;
        let mut outer = Packet::new(outer.source, outer.destination, outer.udp_port);
        outer.iif = Some(uplink());
        let taken = there.run(Hook::Prerouting, &mut outer);
        let taken = taken.and_then(|()| there.run(Hook::Input, &mut outer));
        if taken.is_err() || !outer.untracked {
            return Err(format!(
                "{} tracks or drops what {} tunnels",
                there.name, source.name
            ));
        }
        Ok(there)
    }

    /// What the outside makes of a packet that `last`, the node itself or the gateway, is done with.
    fn verdict(&self, source: &Host, last: &Host, done: Done) -> Result<Option<Capture>, String> {
        let at = &last.name;
        let of = |packet: &Packet| match (packet.ct_mark & CT_MARK_MASK) >> CT_MARK_SHIFT {
            0 => None,
            id => Some(
                self.policies
                    .get(&(id as u16))
                    .cloned()
                    .ok_or(format!("no policy has id {id}")),
            ),
        };
        match done {
            Done::Lost(packet, Dropped(counter)) => match (of(&packet).transpose()?, counter) {
                (Some(policy), Some(c)) if c == Drop::NoGateway.counter() => {
                    Ok(Some(Capture::Dropped { policy }))
                }
                (policy, counter) => Err(format!("{at} drops a packet of {policy:?} as {counter:?}")),
            },
            Done::Left(packet) if packet.mark & Numbers::default().mark_mask != 0 => {
                Err(format!("a routing mark leaves {at}: {:#x}", packet.mark))
            }
            Done::Left(packet) => match (of(&packet).transpose()?, packet.snat) {
                (None, None) => Ok(None),
                (Some(_), Some(address)) if packet.oif != Some(last.holder(address)) => {
                    Err(format!("{address} leaves {at} by {:?}", packet.oif))
                }
                (Some(policy), Some(address)) => Ok(Some(Capture::Egress {
                    policy,
                    gateway: at.clone(),
                    address,
                    ports: packet.snat_ports,
                })),
                (Some(policy), None) if at == &source.name => Ok(Some(Capture::NodeAddress { policy })),
                (policy, address) => Err(format!("{at} sends a packet of {policy:?} with {address:?}")),
            },
        }
    }
}

/// What comes out of the tunnel with a packet.
struct Arrived {
    mark: u32,
    from: MacAddr,
}

impl Arrived {
    fn of(&self, packet: Packet) -> Packet {
        Packet {
            mark: self.mark,
            ether_source: Some(self.from),
            iif: Some(tunnel()),
            ..packet
        }
    }
}

/// What comes back from the outside, and the way it takes.
fn returned(host: &Host, sent: &Packet) -> Result<(Way, Packet), String> {
    let mut reply = sent.reply();
    reply.iif = sent.oif.clone();
    let passed = host.run(Hook::Prerouting, &mut reply);
    passed.map_err(|dropped| format!("{} drops a reply: {dropped:?}", host.name))?;
    Ok((host.route(&reply), reply))
}

/// To the pod.
fn deliver(host: &Host, mut reply: Packet) -> Result<(), String> {
    reply.oif = Some(veth());
    let passed = host.run(Hook::Forward, &mut reply);
    let passed = passed.and_then(|()| host.run(Hook::Postrouting, &mut reply));
    passed.map_err(|dropped| format!("{} drops a reply: {dropped:?}", host.name))
}

/// Out of the node. Postrouting leaves the rest to the CNI.
fn forward(host: &Host, way: &Way, mut packet: Packet) -> Result<Done, String> {
    packet.oif = Some(match way {
        Way::Main => host.main_link(packet.destination),
        Way::Link(link) => link.clone(),
        way => return Err(format!("{} sends out by {way:?}", host.name)),
    });
    let sent = host.run(Hook::Forward, &mut packet);
    let sent = sent.and_then(|()| host.run(Hook::Postrouting, &mut packet));
    Ok(done(packet, sent))
}

fn input(host: &Host, mut packet: Packet) -> Done {
    let taken = host.run(Hook::Input, &mut packet);
    done(packet, taken)
}

fn done(packet: Packet, result: Result<(), Dropped>) -> Done {
    match result {
        Ok(()) => Done::Left(packet),
        Err(dropped) => Done::Lost(packet, dropped),
    }
}
