//! Packets that no program would send, by the ten thousand, from inside a selected pod: none is outside with the pod's or
//! its node's address.
//!
//! `FUZZ_SEED` gives the packets of an earlier run again, `FUZZ_PACKETS` says how many. The kernel fills in the IPv4
//! header's own checksum; all else is as the generator has it.

use std::{env, net::IpAddr, process::Command, time::SystemTime};

use egressnat_e2e::topology::{
    Family, Injector, Node, Options, Packet, Pod, SEGMENT, SERVER, Tap, Topology, Transport,
};

use crate::{
    lab::{Lab, ok},
    plan::Policy,
};

/// Over both nodes and families.
const PACKETS: usize = 100_000;
/// Packets between two looks at what is outside, and two times that conntrack forgets all.
const ROUND: usize = 1000;

/// SplitMix64: the same seed, the same packets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn octet(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn octets(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.octet()).collect()
    }

    /// A few ports, so that connections come about, and packets that belong to none of them.
    fn ports(&mut self) -> [u8; 4] {
        let (from, to) = (1000 + self.below(8) as u16, 2000 + self.below(4) as u16);
        let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
        [a, b, c, d]
    }
}

/// What one packet carries after its IP header, and the number of that protocol.
fn payload(random: &mut Random, family: Family, source: IpAddr, destination: IpAddr) -> (u8, Vec<u8>) {
    let icmp = if family == Family::V4 { 1 } else { 58 };
    let (protocol, mut payload) = match random.below(7) {
        0 | 1 => (6, tcp(random)),
        2 => (17, udp(random)),
        3 => (random.octet(), random.octets(60)),
        4 => (icmp, random.octets(60)),
        5 => (icmp, icmp_error(random, family, source, destination)),
        _ => return extended(random, family, source, destination),
    };
    if random.below(2) == 0 {
        right_checksum(&mut payload, protocol, source, destination);
    }
    (protocol, payload)
}

/// Any flags, any sequence numbers, any length of header, options or what looks like some.
fn tcp(random: &mut Random) -> Vec<u8> {
    let mut segment = random.ports().to_vec();
    segment.extend((0..8).map(|_| random.octet()));
    let plausible = random.below(4) > 0;
    segment.push(if plausible { 5 << 4 } else { random.octet() });
    segment.push(match random.below(3) {
        0 => 2,
        1 => 16,
        _ => random.octet(),
    });
    segment.extend([255, 255, random.octet(), random.octet(), 0, 0]);
    segment.extend(random.octets(24));
    segment
}

/// Lengths that are right, and others.
fn udp(random: &mut Random) -> Vec<u8> {
    let data = random.octets(40);
    let length = match random.below(3) {
        0 => random.next() as u16,
        _ => data.len() as u16 + 8,
    };
    let checksum = [random.octet(), random.octet()];
    [&random.ports()[..], &length.to_be_bytes(), &checksum, &data].concat()
}

/// Any error there is, about anything: a packet that was sent, one that never was, no packet at all.
fn icmp_error(random: &mut Random, family: Family, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let kinds: &[u8] = match family {
        Family::V4 => &[3, 4, 5, 11, 12],
        Family::V6 => &[1, 2, 3, 4],
    };
    let kind = kinds[random.below(kinds.len() as u64) as usize];
    let quoted = match random.below(3) {
        0 => random.octets(60),
        n => {
            let (protocol, inner) = if n == 1 {
                (6, tcp(random))
            } else {
                (17, udp(random))
            };
            let (from, to) = if random.below(2) == 0 {
                (destination, source)
            } else {
                (source, destination)
            };
            whole(from, to, protocol, &inner)
        }
    };
    let head = [
        kind,
        random.octet() % 16,
        0,
        0,
        0,
        0,
        random.octet(),
        random.octet(),
    ];
    [&head[..], &quoted].concat()
}

/// IPv6 extension headers, whole and broken, in any order. Of IPv4, a protocol that says it is one.
fn extended(random: &mut Random, family: Family, source: IpAddr, destination: IpAddr) -> (u8, Vec<u8>) {
    let (mut protocol, mut payload) = (6, tcp(random));
    right_checksum(&mut payload, protocol, source, destination);
    const HEADERS: [u8; 6] = [0, 43, 44, 51, 60, 135];
    let count = if family == Family::V4 {
        1
    } else {
        1 + random.below(3)
    };
    for _ in 0..count {
        let header = HEADERS[random.below(HEADERS.len() as u64) as usize];
        let mut octets = vec![protocol, 0];
        // Padding of six octets, or whatever.
        match random.below(2) {
            0 => octets.extend([1, 4, 0, 0, 0, 0]),
            _ => octets.extend((0..6).map(|_| random.octet())),
        }
        if random.below(8) == 0 {
            octets[1] = random.octet();
        }
        octets.extend(payload);
        (protocol, payload) = (header, octets);
    }
    (protocol, payload)
}

/// Of TCP and UDP, where the payload has room for one.
fn right_checksum(payload: &mut [u8], protocol: u8, source: IpAddr, destination: IpAddr) {
    let at = match protocol {
        6 if payload.len() >= 20 => 16,
        17 if payload.len() >= 8 => 6,
        1 | 58 if payload.len() >= 8 => 2,
        _ => return,
    };
    payload[at..at + 2].fill(0);
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let pseudo = match protocol {
        1 => Vec::new(),
        _ => [
            address(source),
            address(destination),
            (payload.len() as u32).to_be_bytes().to_vec(),
            vec![0, 0, 0, protocol],
        ]
        .concat(),
    };
    let octets: Vec<u8> = pseudo.iter().chain(payload.iter()).copied().collect();
    let sum: u64 = octets
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    payload[at..at + 2].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// A whole packet: of IPv4, now and then with options or as a fragment; of IPv6 as a fragment by its extension header.
fn packet(random: &mut Random, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
    let (protocol, payload) = payload(random, family, source, destination);
    let fragment = random.below(6) == 0;
    // A few identifiers, offsets and ends, so that fragments overlap, and first ones are missing.
    let (id, offset) = (random.below(4) as u16 + 1, random.below(6) as u16);
    let more = random.below(2) as u16;
    if family == Family::V6 {
        let place = (offset << 3 | more).to_be_bytes();
        let head = [protocol, 0, place[0], place[1], 0, 0, 0, id as u8];
        return match fragment {
            true => whole(source, destination, 44, &[&head[..], &payload].concat()),
            false => whole(source, destination, protocol, &payload),
        };
    }
    let mut packet = whole(source, destination, protocol, &payload);
    if fragment {
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&(more << 13 | offset).to_be_bytes());
    }
    if random.below(8) == 0 {
        let words = 1 + random.below(10) as u8;
        let mut options: Vec<u8> = (0..words * 4).map(|_| random.octet()).collect();
        if random.below(2) == 0 {
            // No-ops: options that are right.
            options.fill(1);
        }
        packet[0] = 0x45 + words;
        let length = (packet.len() + options.len()) as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet.splice(20..20, options);
    }
    packet
}

/// With a plain IP header.
fn whole(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    const HOPS: u8 = 64;
    let header = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [a, b] = (payload.len() as u16 + 20).to_be_bytes();
            let head = [0x45, 0, a, b, 0, 0, 0, 0, HOPS, protocol, 0, 0];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [a, b] = (payload.len() as u16).to_be_bytes();
            let head = [0x60, 0, 0, 0, a, b, protocol, HOPS];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        _ => panic!("two families"),
    };
    [&header, payload].concat()
}

/// What was seen outside.
#[derive(Debug, Default)]
struct Seen {
    sent: usize,
    refused: usize,
    right: usize,
    wrong: usize,
    examples: Vec<Packet>,
}

/// Sends from a pod on a node, and looks what is outside.
#[track_caller]
fn fuzz(lab: &Lab, (node, pod): (&Node, &Pod), family: Family, seed: u64, packets: usize) -> Seen {
    let (source, destination) = (pod.address.of(family), SERVER.of(family));
    let injector = ok(Injector::open(&pod.netns, family));
    let egress = lab.topology.gateway.egress.of(family);
    let (mut random, mut seen) = (Random(seed), Seen::default());
    let mut tap = ok(lab.topology.tap());
    for _ in 0..packets.div_ceil(ROUND) {
        for _ in 0..ROUND {
            match injector.send(&packet(&mut random, source, destination)) {
                Ok(()) => seen.sent += 1,
                // The pod's own kernel refuses some.
                Err(_) => seen.refused += 1,
            }
        }
        judge(
            ok(tap.take()),
            (source, node.address.of(family), egress),
            &mut seen,
        );
        // What comes now belongs to connections that nobody knows any more.
        ok(node.netns.output(Command::new("conntrack").arg("-F")));
    }
    lab.wait_for_a_right_one(pod, family, &mut tap);
    judge(
        ok(tap.take()),
        (source, node.address.of(family), egress),
        &mut seen,
    );
    seen
}

fn judge(packets: Vec<Packet>, (pod, node, egress): (IpAddr, IpAddr, IpAddr), seen: &mut Seen) {
    for packet in packets {
        // The node's own search for its neighbour.
        let neighbours = packet.source == node
            && matches!(packet.transport, Transport::Icmp { kind: 135 | 136, .. })
            && packet.source.is_ipv6();
        if neighbours || !SERVER.both().contains(&packet.destination) {
            continue;
        }
        if packet.source == egress {
            seen.right += 1;
        } else if packet.source == pod || packet.source == node {
            seen.wrong += 1;
            if seen.examples.len() < 3 {
                seen.examples.push(packet);
            }
        }
    }
}

impl Lab {
    /// A datagram of the pod's is outside: what it sent before has been seen, if it was to be.
    #[track_caller]
    fn wait_for_a_right_one(&self, pod: &Pod, family: Family, tap: &mut Tap) {
        let server = SERVER.of(family);
        ok(egressnat_e2e::topology::ask_udp(&pod.netns, server));
        ok(tap.wait_for("a datagram", |packet| packet.destination == server));
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    number("FUZZ_SEED").unwrap_or_else(|| now().map_or(0, |now| u64::from(now.subsec_nanos())))
}

#[test]
fn nothing_that_a_selected_pod_can_make_up_leaves_with_its_own_or_its_nodes_address() {
    let lab = Lab::new(Options::default());
    let Topology { source, gateway, .. } = &lab.topology;
    lab.apply(&[Policy::new(7)
        .to(&SEGMENT)
        .via(gateway, gateway.egress)
        .select(&source.pods[0])
        .select(&gateway.pods[0])]);
    let seed = seed();
    let packets = number("FUZZ_PACKETS").map_or(PACKETS, |n| n as usize);
    println!("FUZZ_SEED={seed}, {packets} packets");
    for node in [source, gateway] {
        for family in [Family::V4, Family::V6] {
            // The probe sees what leaves: of the pod that no policy selects, a good part does.
            let free = fuzz(&lab, (node, &node.pods[1]), family, seed, 2 * ROUND);
            assert!(free.wrong > ROUND / 2, "{} {family:?}: {free:?}", node.name);
            let held = fuzz(&lab, (node, &node.pods[0]), family, seed, packets / 4);
            println!(
                "{} {family:?}: unselected {} of {} outside; selected {} sent, {} outside with the policy's address, {} \
                 with another ({} refused by the pod's own kernel)",
                node.name, free.wrong, free.sent, held.sent, held.right, held.wrong, held.refused
            );
            assert_eq!(held.wrong, 0, "FUZZ_SEED={seed}: {:#?}", held.examples);
            assert!(held.right > 0 && held.sent > packets / 8, "{held:?}");
        }
    }
}
