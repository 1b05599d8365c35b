//! What comes to the gateway by the tunnel and is not what a peer may send.
//!
//! Packets are made by hand. The probe is shown to work by a good packet, which leaves translated; each bad one
//! counts where it should, nowhere else, and nothing of it leaves.

use std::net::{IpAddr, SocketAddr};

use egressnat_agent::owned::Drop as DropReason;
use egressnat_e2e::topology::{
    Dual, Encapsulation, FAMILIES, Family, Flags, Flow, Options, PORT, Packet, SEGMENT, SERVER, Tap,
    Topology, on_segment, send_tunnelled, tcp_segment, udp_datagram,
};

use egressnat_e2e::netns::Netns;

use crate::{
    lab::{Lab, assert_dropped, ok},
    plan::Policy,
};

/// The gateway serves policies 7 and 8 for the source node's first pod.
fn policies(topology: &Topology) -> [Policy; 2] {
    let Topology { source, gateway, .. } = topology;
    let elsewhere = ["198.51.100.0/24", "2001:db8:51::/48"];
    let via = |id, address| Policy::new(id).via(gateway, address).select(&source.pods[0]);
    [
        via(7, gateway.egress).to(&SEGMENT),
        via(8, gateway.secondary).to(&elsewhere),
    ]
}

fn lab() -> Lab {
    let lab = Lab::new(Options::default());
    lab.apply(&policies(&lab.topology));
    lab
}

impl Lab {
    /// The headers of a good packet.
    fn around(&self) -> Encapsulation {
        let Topology { source, gateway, .. } = &self.topology;
        Encapsulation {
            id: 7,
            source: Encapsulation::mac(source.address.v4),
            destination: Encapsulation::mac(gateway.address.v4),
        }
    }

    /// Sends a packet to the gateway by the tunnel, as the source node would.
    fn send(&self, around: Encapsulation, packet: &[u8]) {
        self.send_from(&self.topology.source.netns, around, packet);
    }

    fn send_from(&self, netns: &Netns, around: Encapsulation, packet: &[u8]) {
        ok(send_tunnelled(
            netns,
            self.topology.gateway.address.v4.into(),
            around,
            packet,
        ));
    }

    /// The pod's address.
    fn pod(&self, family: Family) -> IpAddr {
        self.topology.source.pods[0].address.of(family)
    }

    /// A good packet passes and `bad` does not: it counts for `reason` alone, and no packet from its port leaves.
    fn assert_only_the_good_one_passes(&self, reason: DropReason, bad: impl Fn(&Self, Family, u16)) {
        let gateway = &self.topology.gateway;
        let mut tap = ok(self.topology.tap());
        for (number, family) in (1..).zip(FAMILIES) {
            let (good, evil) = (1000, 2000);
            bad(self, family, evil);
            assert_dropped(&self.gateway, reason, number);
            self.send(self.around(), &datagram(self.pod(family), family, good));
            let passed = ok(tap.wait_for("the good packet", |packet| {
                packet.is_from_port(good) && packet.destination == SERVER.of(family)
            }));
            assert_eq!(passed.source, gateway.egress.of(family));
            assert_eq!(ok(tap.count(|packet| packet.is_from_port(evil))), 0, "{family:?}");
        }
        let others = DropReason::ALL.into_iter().filter(|other| *other != reason);
        for other in others {
            assert_eq!(self.gateway.dropped(other), 0, "{}", other.counter());
        }
    }
}

fn datagram(source: IpAddr, family: Family, port: u16) -> Vec<u8> {
    let server = SocketAddr::new(SERVER.of(family), PORT);
    ok(udp_datagram(SocketAddr::new(source, port), server, b"who"))
}

#[test]
fn from_a_node_that_is_no_peer() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::NotPeer, |lab, family, port| {
        lab.send_from(
            &lab.topology.second.netns,
            lab.around(),
            &datagram(lab.pod(family), family, port),
        );
    });
}

#[test]
fn from_the_outside_with_the_address_of_no_peer() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::NotPeer, |lab, family, port| {
        lab.send_from(
            &lab.topology.outside,
            lab.around(),
            &datagram(lab.pod(family), family, port),
        );
    });
}

#[test]
fn with_the_mac_address_of_no_peer() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::NotPeer, |lab, family, port| {
        let around = Encapsulation {
            source: [2, 0x65, 172, 30, 0, 4],
            ..lab.around()
        };
        lab.send(around, &datagram(lab.pod(family), family, port));
    });
}

#[test]
fn with_an_unknown_id() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::UnknownId, |lab, family, port| {
        lab.send(
            Encapsulation {
                id: 9,
                ..lab.around()
            },
            &datagram(lab.pod(family), family, port),
        );
    });
}

#[test]
fn with_no_id() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::UnknownId, |lab, family, port| {
        lab.send(
            Encapsulation {
                id: 0,
                ..lab.around()
            },
            &datagram(lab.pod(family), family, port),
        );
    });
}

#[test]
fn with_the_inner_source_of_another_nodes_pod() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::Spoofed, |lab, family, port| {
        let other = lab.topology.second.pods[0].address.of(family);
        lab.send(lab.around(), &datagram(other, family, port));
    });
}

#[test]
fn with_the_inner_source_of_the_gateways_own_pod() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::Spoofed, |lab, family, port| {
        let own = lab.topology.gateway.pods[0].address.of(family);
        lab.send(lab.around(), &datagram(own, family, port));
    });
}

#[test]
fn of_no_connection_and_opening_none() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::Unplaced, |lab, family, port| {
        let from = SocketAddr::new(lab.pod(family), port);
        let to = SocketAddr::new(SERVER.of(family), PORT);
        lab.send(lab.around(), &ok(tcp_segment(from, to, Flags::Rst)));
    });
}

#[test]
fn of_a_connection_that_another_policy_has_decided() {
    let lab = lab();
    let mut tap = ok(lab.topology.tap());
    lab.assert_only_the_good_one_passes(DropReason::Stale, |lab, family, _| {
        // Its first packet is good: only what the second one's id says is wrong.
        let packet = datagram(lab.pod(family), family, 3000);
        lab.send(lab.around(), &packet);
        lab.send(
            Encapsulation {
                id: 8,
                ..lab.around()
            },
            &packet,
        );
    });
    for family in FAMILIES {
        let left = |packet: &Packet| packet.is_from_port(3000) && packet.destination == SERVER.of(family);
        assert_eq!(ok(tap.count(left)), 1, "{family:?}");
    }
}

/// A reply that nobody at the other end of the tunnel has reason to send: that of a connection of the gateway's
/// own pod, which no policy made.
#[test]
fn a_reply_to_a_connection_that_is_no_policys() {
    let lab = lab();
    lab.assert_only_the_good_one_passes(DropReason::StrayReply, |lab, family, _| {
        let gateway = &lab.topology.gateway;
        let server = SocketAddr::new(SERVER.of(family), PORT);
        let pod = &gateway.pods[1].netns;
        let mut inside = ok(Tap::incoming(pod, &["eth0"]));
        let flow = ok(Flow::open(pod, server));
        assert_eq!(ok(flow.ask()), gateway.address.of(family));
        let to = SocketAddr::new(gateway.address.of(family), ok(flow.port()));
        lab.send(lab.around(), &ok(udp_datagram(server, to, b"forged")));
        assert_eq!(ok(flow.ask()), gateway.address.of(family));
        assert_eq!(
            ok(inside.count(|packet| packet.is_from_port(PORT))),
            2,
            "two answers, nothing forged"
        );
    });
}

/// Some CNIs give pods addresses outside their node's ranges: the gateway then has an entry for each. A few are
/// compared one by one, many are looked up.
#[test]
fn with_an_inner_source_that_is_not_among_the_peers_single_addresses() {
    for further in [0, 8] {
        let lab = lab();
        let Topology { source, gateway, .. } = &lab.topology;
        let [selected, other] = [0, 1].map(|pod| source.pods[pod].address);
        let further = (0..further).map(|host| on_segment(200 + host));
        let mut plan = lab.plan(gateway, &policies(&lab.topology));
        let ranges = [selected].into_iter().chain(further).flat_map(Dual::both);
        plan.peers[0].ranges = ranges.map(Into::into).collect();
        plan.peers[0].ranges.sort();
        ok(lab.gateway.sync(Some(&plan)));
        lab.assert_seen(&source.pods[0], SERVER, gateway.egress);
        lab.assert_only_the_good_one_passes(DropReason::Spoofed, |lab, family, port| {
            lab.send(lab.around(), &datagram(other.of(family), family, port));
        });
    }
}
