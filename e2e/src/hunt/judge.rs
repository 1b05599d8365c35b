//! Is a packet's source one that its pod may send with at that moment?

use std::fmt;

use super::{
    packet::{Packet, What},
    place::Source,
    world::World,
};

/// What is said of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judgement {
    /// It is no pod's.
    Foreign,
    /// Its source is one that its pod may have.
    Right,
    /// It is not.
    Wrong(Why),
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A pod's own address, or one that nobody was given.
    NobodysAddress,
    /// The address of the pod's node, while a policy applies.
    OwnNode,
    /// The address of another node.
    OtherNode,
    /// The address of a policy that does not apply.
    OtherPolicy,
    /// Another pod's name: the packet came by another pod's port.
    OtherName,
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NobodysAddress => "with an address that nobody may send with",
            Self::OwnNode => "with its node's address",
            Self::OtherNode => "with another node's address",
            Self::OtherPolicy => "with an address of a policy that does not apply",
            Self::OtherName => "with another pod's name",
        })
    }
}

/// Judges a packet by the history.
#[must_use]
pub fn judge(packet: &Packet, world: &World) -> Judgement {
    let source = Source::of(packet.source);
    // A node resets what comes for a connection of its own addresses that its conntrack has forgotten. Nobody else
    // sends what no node has forwarded.
    let is_nodes_reset = packet.what == What::Reset && !packet.forwarded;
    let sender = packet.port.filter(|_| !is_nodes_reset);
    let Some(pod) = sender.and_then(|port| world.pods.get(&port)) else {
        return match source {
            Source::Nobody => Judgement::Wrong(Why::NobodysAddress),
            Source::Node(_) | Source::Egress(_) | Source::Router => Judgement::Foreign,
        };
    };
    if packet.name.as_ref().is_some_and(|name| *name != pod.name) {
        return Judgement::Wrong(Why::OtherName);
    }
    let allowed = world.allowed(pod, packet.destination, packet.at);
    if allowed.contains(&source) {
        return Judgement::Right;
    }
    // What conntrack cannot place any more once the hunt has made it forget, the CNI's masquerade does not touch; of
    // pods that no policy selects, it is nobody else's affair.
    if source == Source::Nobody
        && matches!(packet.what, What::Fin | What::Reset | What::Segment)
        && allowed.contains(&Source::Node(pod.node))
        && world.has_forgotten(pod, packet.at)
    {
        return Judgement::Foreign;
    }
    Judgement::Wrong(match source {
        Source::Node(node) if node == pod.node => Why::OwnNode,
        Source::Node(_) => Why::OtherNode,
        Source::Egress(_) => Why::OtherPolicy,
        Source::Router | Source::Nobody => Why::NobodysAddress,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hunt::{
            model::{Policy, Selector},
            place::{EGRESS, FIRST_PORT},
            timeline::{Time, Timeline},
            world::{FORGETTING, Pod},
        },
        site::{NODES, ROUTER},
    };

    const RED: Selector = Selector {
        pod: Some("red"),
        namespace: None,
        node: None,
    };

    fn policy(egress: usize) -> Option<Policy> {
        Some(Policy {
            priority: 1,
            selector: RED,
            excluded: Some(1),
            egress,
            by_label: false,
        })
    }

    /// A red pod on the second node, created at 5, beside a policy that was sent at 10 and was in place at 20.
    fn world() -> World {
        let mut world = World::new();
        let mut timeline = Timeline::new(None);
        timeline.change(policy(0), 10);
        world.policies.insert("p".into(), timeline);
        world.settle(20);
        let pod = Pod {
            name: "hunt-0".into(),
            namespace: 0,
            node: 1,
            uid: String::new(),
            created: 5,
            deleted: None,
            removed: None,
            started: None,
            heard: None,
            label: Timeline::new("red"),
        };
        world.pods.insert(FIRST_PORT, pod);
        world
    }

    fn packet(at: Time, source: std::net::IpAddr) -> Packet {
        Packet {
            at,
            source,
            destination: 0,
            port: Some(FIRST_PORT),
            what: What::Datagram,
            forwarded: true,
            name: Some("hunt-0".into()),
        }
    }

    fn said(world: &World, at: Time, source: std::net::IpAddr) -> Judgement {
        judge(&packet(at, source), world)
    }

    #[test]
    fn a_newly_selected_pod_may_show_its_node_until_the_policy_is_in_place() {
        let (world, own) = (world(), NODES[1].v4.into());
        assert_eq!(said(&world, 9, EGRESS[0][0]), Judgement::Wrong(Why::OtherPolicy));
        assert_eq!(said(&world, 9, own), Judgement::Right);
        assert_eq!(said(&world, 15, EGRESS[0][1]), Judgement::Right);
        assert_eq!(said(&world, 15, own), Judgement::Right);
        assert_eq!(said(&world, 20, own), Judgement::Wrong(Why::OwnNode));
        assert_eq!(said(&world, 20, EGRESS[0][0]), Judgement::Right);
    }

    #[test]
    fn between_two_addresses_there_is_no_third_and_never_the_nodes() {
        let mut world = world();
        world.policies.get_mut("p").unwrap().change(policy(2), 30);
        for pair in [0, 2] {
            assert_eq!(said(&world, 31, EGRESS[pair][0]), Judgement::Right);
        }
        assert_eq!(said(&world, 31, EGRESS[1][0]), Judgement::Wrong(Why::OtherPolicy));
        let own = NODES[1].v6.into();
        assert_eq!(said(&world, 31, own), Judgement::Wrong(Why::OwnNode));
        world.settle(40);
        assert_eq!(said(&world, 40, EGRESS[0][0]), Judgement::Wrong(Why::OtherPolicy));
    }

    #[test]
    fn a_pods_own_address_and_another_nodes_are_never_right() {
        let world = world();
        for at in [6, 15, 25] {
            let own = "10.244.1.7".parse().unwrap();
            assert_eq!(said(&world, at, own), Judgement::Wrong(Why::NobodysAddress));
            let other = NODES[2].v4.into();
            assert_eq!(said(&world, at, other), Judgement::Wrong(Why::OtherNode));
        }
    }

    #[test]
    fn an_unselected_pods_forgotten_connections_are_the_cnis() {
        let mut world = world();
        let nobodys = Judgement::Wrong(Why::NobodysAddress);
        let mut packet = packet(8, "10.244.1.7".parse().unwrap());
        packet.what = What::Fin;
        assert_eq!(judge(&packet, &world), nobodys);
        world.forgotten[1] = Some(6);
        assert_eq!(judge(&packet, &world), Judgement::Foreign);
        // By a new connection, of a selected pod, on another node, much later: wrong as ever.
        packet.what = What::Syn;
        assert_eq!(judge(&packet, &world), nobodys);
        (packet.what, packet.at) = (What::Fin, 25);
        assert_eq!(judge(&packet, &world), nobodys);
        packet.at = 8;
        world.pods.get_mut(&FIRST_PORT).unwrap().node = 2;
        assert_eq!(judge(&packet, &world), nobodys);
        world.pods.get_mut(&FIRST_PORT).unwrap().node = 1;
        world.policies.clear();
        packet.at = 6 + FORGETTING;
        assert_eq!(judge(&packet, &world), Judgement::Foreign);
        packet.at += 1;
        assert_eq!(judge(&packet, &world), nobodys);
    }

    #[test]
    fn what_no_node_has_forwarded_is_a_nodes_reset_or_as_bad_as_any() {
        let world = world();
        let mut packet = packet(25, NODES[1].v4.into());
        packet.forwarded = false;
        assert_eq!(judge(&packet, &world), Judgement::Wrong(Why::OwnNode));
        packet.what = What::Reset;
        assert_eq!(judge(&packet, &world), Judgement::Foreign);
        packet.source = "10.244.1.7".parse().unwrap();
        assert_eq!(judge(&packet, &world), Judgement::Wrong(Why::NobodysAddress));
    }

    #[test]
    fn what_a_policy_excludes_leaves_with_the_nodes_address() {
        let world = world();
        let mut packet = packet(25, NODES[1].v4.into());
        packet.destination = 1;
        assert_eq!(judge(&packet, &world), Judgement::Right);
        packet.source = EGRESS[0][0];
        assert_eq!(judge(&packet, &world), Judgement::Wrong(Why::OtherPolicy));
    }

    #[test]
    fn a_pod_that_is_gone_from_the_api_keeps_its_verdict_until_a_change() {
        let mut world = world();
        let pod = world.pods.get_mut(&FIRST_PORT).unwrap();
        (pod.deleted, pod.removed) = (Some(25), Some(25));
        let own = NODES[1].v4.into();
        assert_eq!(said(&world, 29, own), Judgement::Wrong(Why::OwnNode));
        world.policies.get_mut("p").unwrap().change(None, 30);
        world.settle(40);
        assert_eq!(said(&world, 50, own), Judgement::Right);
        assert_eq!(said(&world, 50, EGRESS[0][0]), Judgement::Right);
        assert_eq!(said(&world, 50, EGRESS[1][0]), Judgement::Wrong(Why::OtherPolicy));
    }

    #[test]
    fn a_packet_is_its_ports_pods_and_must_have_its_name() {
        let world = world();
        let mut packet = packet(25, EGRESS[0][0]);
        packet.name = None;
        assert_eq!(judge(&packet, &world), Judgement::Right);
        packet.name = Some("hunt-1".into());
        assert_eq!(judge(&packet, &world), Judgement::Wrong(Why::OtherName));
        packet.port = Some(FIRST_PORT + 1);
        assert_eq!(judge(&packet, &world), Judgement::Foreign);
        packet.source = ROUTER.1.into();
        assert_eq!(judge(&packet, &world), Judgement::Foreign);
        packet.port = Some(FIRST_PORT);
        assert!(matches!(judge(&packet, &world), Judgement::Wrong(_)));
    }
}
