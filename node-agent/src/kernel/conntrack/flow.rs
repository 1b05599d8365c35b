//! Conntrack entries as values.

use std::net::IpAddr;

use egressnat_crds::plan::Family;
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol, Status, Tuple as TuplePart,
};

/// Those `CTA_*` of `linux/netfilter/nfnetlink_conntrack.h` for which the library has no type, or none that we
/// can use.
pub(super) mod cta {
    pub const TUPLE_ORIG: u16 = 1;
    pub const MARK: u16 = 8;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const MARK_MASK: u16 = 21;
    pub const FILTER: u16 = 25;

    pub const FILTER_ORIG_FLAGS: u16 = 1;
    pub const FILTER_REPLY_FLAGS: u16 = 2;

    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_ZONE: u16 = 3;

    pub const PROTO_ICMP_ID: u16 = 4;
    pub const PROTO_ICMP_TYPE: u16 = 5;
    pub const PROTO_ICMP_CODE: u16 = 6;
    pub const PROTO_ICMPV6_ID: u16 = 7;
    pub const PROTO_ICMPV6_TYPE: u16 = 8;
    pub const PROTO_ICMPV6_CODE: u16 = 9;

    pub const STATS_INSERT_FAILED: u16 = 9;
}

const IPPROTO_TCP: u8 = 6;
const IPPROTO_GRE: u8 = 47;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;

// linux/netfilter/nf_conntrack_tcp.h
const TCP_CONNTRACK_TIME_WAIT: u8 = 7;
const TCP_CONNTRACK_CLOSE: u8 = 8;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What tells it from others between the same addresses.
    pub layer4: Layer4,
    zone: Option<u16>,
}

/// What tells a connection from others between the same addresses with the same protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer4 {
    /// Of TCP, UDP and others with ports.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// Of ICMP and ICMPv6.
    Icmp {
        /// Identifier.
        id: u16,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Nothing.
    Alone,
}

/// A conntrack entry: what it takes to judge it and to delete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Number of the IP protocol.
    pub protocol: u8,
    /// As the first packet came, before any translation.
    pub original: Tuple,
    /// As replies come. Its destination is the source address that the other side sees.
    pub reply: Tuple,
    /// Connection mark.
    pub mark: u32,
    /// `IPS_*` bits.
    pub status: u32,
    /// `TCP_CONNTRACK_*`, of TCP alone.
    pub tcp_state: Option<u8>,
    /// The kernel's name for the entry, which it gives to no other while this one lives.
    pub id: u32,
    zone: Option<u16>,
}

impl Flow {
    /// Family.
    pub fn family(&self) -> Family {
        self.original.source.into()
    }

    /// The source as the other side sees it: address, and port or echo identifier where the protocol has one.
    pub fn source_seen(&self) -> (IpAddr, Option<u16>) {
        let port = match self.reply.layer4 {
            // What conntrack shows for ports is the key, by which it tells tunnels of PPTP alone.
            _ if self.protocol == IPPROTO_GRE => None,
            Layer4::Ports { destination, .. } => Some(destination),
            Layer4::Icmp { id, .. } => Some(id),
            Layer4::Alone => None,
        };
        (self.reply.destination, port)
    }

    /// Whether its source is translated.
    pub fn is_source_translated(&self) -> bool {
        Status::from_bits_retain(self.status).contains(Status::SrcNat)
    }

    /// Whether packets have come from the other side.
    pub fn is_answered(&self) -> bool {
        Status::from_bits_retain(self.status).contains(Status::SeenReply)
    }

    /// Whether an end may still send what conntrack could not place without the entry: of TCP and SCTP, a packet that
    /// does not begin the connection.
    pub fn may_go_on(&self) -> bool {
        match self.protocol {
            IPPROTO_TCP => !matches!(
                self.tcp_state,
                Some(TCP_CONNTRACK_TIME_WAIT | TCP_CONNTRACK_CLOSE)
            ),
            IPPROTO_SCTP => true,
            _ => false,
        }
    }

    /// The entry that has these attributes.
    pub(super) fn read(attributes: &[ConntrackAttribute]) -> Option<Self> {
        let (mut original, mut reply) = (None, None);
        let (mut mark, mut status, mut id, mut zone) = (0, 0, 0, None);
        let mut tcp_state = None;
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(parts) => original = read_tuple(parts),
                ConntrackAttribute::CtaTupleReply(parts) => reply = read_tuple(parts),
                ConntrackAttribute::CtaProtoInfo(parts) => tcp_state = read_tcp_state(parts),
                ConntrackAttribute::CtaMark(bits) => mark = *bits,
                ConntrackAttribute::CtaStatus(bits) => status = bits.bits(),
                ConntrackAttribute::Other(other) => match other.kind() {
                    cta::ID => id = u32::from_be_bytes(octets(other)?),
                    cta::ZONE => zone = Some(u16::from_be_bytes(octets(other)?)),
                    _ => {}
                },
                _ => {}
            }
        }
        let ((protocol, original), (_, reply)) = (original?, reply?);
        Some(Self {
            protocol,
            original,
            reply,
            mark,
            status,
            tcp_state,
            id,
            zone,
        })
    }

    /// What names the entry, and no other that may have taken its place.
    pub(super) fn identity(&self) -> Vec<ConntrackAttribute> {
        let id = DefaultNla::new(cta::ID, self.id.to_be_bytes().to_vec());
        let zone = self.zone.map(|zone| number(cta::ZONE, zone));
        let mut attributes = vec![ConntrackAttribute::CtaTupleOrig(
            self.original.write(self.protocol),
        )];
        attributes.push(ConntrackAttribute::Other(id));
        attributes.extend(zone.map(ConntrackAttribute::Other));
        attributes
    }
}

impl Tuple {
    fn write(&self, protocol: u8) -> Vec<TuplePart> {
        let icmp = |[id_kind, kind_kind, code_kind]: [u16; 3], id, kind, code| {
            vec![
                ProtoTuple::Other(number(id_kind, id)),
                ProtoTuple::Other(DefaultNla::new(kind_kind, vec![kind])),
                ProtoTuple::Other(DefaultNla::new(code_kind, vec![code])),
            ]
        };
        let mut proto = vec![ProtoTuple::Protocol(Protocol::from(protocol))];
        proto.extend(match self.layer4 {
            Layer4::Alone => Vec::new(),
            Layer4::Ports { source, destination } => vec![
                ProtoTuple::SourcePort(source),
                ProtoTuple::DestinationPort(destination),
            ],
            Layer4::Icmp { id, kind, code } => {
                let kinds = match protocol {
                    IPPROTO_ICMPV6 => [
                        cta::PROTO_ICMPV6_ID,
                        cta::PROTO_ICMPV6_TYPE,
                        cta::PROTO_ICMPV6_CODE,
                    ],
                    _ => [cta::PROTO_ICMP_ID, cta::PROTO_ICMP_TYPE, cta::PROTO_ICMP_CODE],
                };
                icmp(kinds, id, kind, code)
            }
        });
        let ip = vec![
            IPTuple::SourceAddress(self.source),
            IPTuple::DestinationAddress(self.destination),
        ];
        let mut parts = vec![TuplePart::Ip(ip), TuplePart::Proto(proto)];
        let zone = self.zone.map(|zone| number(cta::TUPLE_ZONE, zone));
        parts.extend(zone.map(TuplePart::Other));
        parts
    }
}

/// A number of 16 bits in network byte order.
fn number(kind: u16, number: u16) -> DefaultNla {
    DefaultNla::new(kind, number.to_be_bytes().to_vec())
}

/// The value of an attribute of known length.
pub(super) fn octets<const N: usize>(attribute: &DefaultNla) -> Option<[u8; N]> {
    let mut octets = [0; N];
    (attribute.value_len() == N).then(|| {
        attribute.emit_value(&mut octets);
        octets
    })
}

fn read_tcp_state(parts: &[ProtoInfo]) -> Option<u8> {
    let of_tcp = parts.iter().filter_map(|part| match part {
        ProtoInfo::TCP(parts) => Some(parts),
        _ => None,
    });
    of_tcp.flatten().find_map(|part| match part {
        ProtoInfoTCP::State(state) => Some(*state),
        _ => None,
    })
}

/// The tuple with its protocol's number.
fn read_tuple(parts: &[TuplePart]) -> Option<(u8, Tuple)> {
    let (mut ips, mut proto, mut zone) = (None, None, None);
    for part in parts {
        match part {
            TuplePart::Ip(ip) => ips = read_ips(ip),
            TuplePart::Proto(parts) => proto = read_proto(parts),
            TuplePart::Other(other) if other.kind() == cta::TUPLE_ZONE => {
                zone = Some(u16::from_be_bytes(octets(other)?));
            }
            _ => {}
        }
    }
    let ((source, destination), (protocol, layer4)) = (ips?, proto?);
    let tuple = Tuple {
        source,
        destination,
        layer4,
        zone,
    };
    Some((protocol, tuple))
}

fn read_ips(parts: &[IPTuple]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for part in parts {
        match part {
            IPTuple::SourceAddress(address) => source = Some(*address),
            IPTuple::DestinationAddress(address) => destination = Some(*address),
            _ => {}
        }
    }
    source.zip(destination)
}

fn read_proto(parts: &[ProtoTuple]) -> Option<(u8, Layer4)> {
    let (mut protocol, mut ports, mut icmp) = (None, (None, None), (None, 0, 0));
    for part in parts {
        match part {
            ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
            ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
            ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
            ProtoTuple::Other(other) => match other.kind() {
                cta::PROTO_ICMP_ID | cta::PROTO_ICMPV6_ID => icmp.0 = octets(other).map(u16::from_be_bytes),
                cta::PROTO_ICMP_TYPE | cta::PROTO_ICMPV6_TYPE => [icmp.1] = octets(other)?,
                cta::PROTO_ICMP_CODE | cta::PROTO_ICMPV6_CODE => [icmp.2] = octets(other)?,
                _ => {}
            },
            _ => {}
        }
    }
    let layer4 = match (ports, icmp) {
        ((Some(source), Some(destination)), _) => Layer4::Ports { source, destination },
        (_, (Some(id), kind, code)) => Layer4::Icmp { id, kind, code },
        _ => Layer4::Alone,
    };
    Some((protocol?, layer4))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, ParseableParametrized};
    use netlink_packet_netfilter::conntrack::ConntrackMessage;
    use proptest::prelude::*;

    use super::*;

    fn tuple(v6: bool, layer4: Layer4) -> Tuple {
        let ip = |n: u8| match v6 {
            true => IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]),
            false => IpAddr::from([10, 0, 0, n]),
        };
        Tuple {
            source: ip(1),
            destination: ip(2),
            layer4,
            zone: None,
        }
    }

    #[test]
    fn a_tuple_is_read_as_it_is_written() {
        let ports = Layer4::Ports {
            source: 40000,
            destination: 53,
        };
        let icmp = Layer4::Icmp {
            id: 7,
            kind: 8,
            code: 0,
        };
        let cases = [
            (false, 17, ports),
            (true, 6, ports),
            (false, 1, icmp),
            (true, IPPROTO_ICMPV6, icmp),
            (true, 4, Layer4::Alone),
        ];
        for (v6, protocol, layer4) in cases {
            let mut tuple = tuple(v6, layer4);
            for zone in [None, Some(9)] {
                tuple.zone = zone;
                let written = [ConntrackAttribute::CtaTupleOrig(tuple.write(protocol))];
                let mut octets = vec![0; written.as_slice().buffer_len()];
                written.as_slice().emit(&mut octets);
                let ConntrackMessage::New(read) = ConntrackMessage::parse_with_param(&octets, 0).unwrap()
                else {
                    panic!("{octets:?}");
                };
                let [ConntrackAttribute::CtaTupleOrig(parts)] = read.as_slice() else {
                    panic!("{read:?}");
                };
                assert_eq!(read_tuple(parts), Some((protocol, tuple)));
            }
        }
    }

    proptest! {
        /// Whatever arrives: no panic, no endless walk.
        #[test]
        fn any_octets_are_read_to_an_end(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let message = ConntrackMessage::parse_with_param(&octets, 0);
            if let Ok(ConntrackMessage::New(attributes)) = message {
                let _ = Flow::read(&attributes);
                prop_assert!(attributes.len() <= octets.len());
            }
        }
    }
}
