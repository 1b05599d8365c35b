//! Conntrack entries as values.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressnat_crds::plan::Family;
use netlink_packet_core::NlasIterator;

use super::attribute::Attribute;

/// `CTA_*` of `linux/netfilter/nfnetlink_conntrack.h`.
pub(super) mod cta {
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
    pub const STATUS: u16 = 3;
    pub const MARK: u16 = 8;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const MARK_MASK: u16 = 21;
    pub const FILTER: u16 = 25;

    pub const FILTER_ORIG_FLAGS: u16 = 1;
    pub const FILTER_REPLY_FLAGS: u16 = 2;

    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_PROTO: u16 = 2;
    pub const TUPLE_ZONE: u16 = 3;

    pub const IP_V4_SRC: u16 = 1;
    pub const IP_V4_DST: u16 = 2;
    pub const IP_V6_SRC: u16 = 3;
    pub const IP_V6_DST: u16 = 4;

    pub const PROTO_NUM: u16 = 1;
    pub const PROTO_SRC_PORT: u16 = 2;
    pub const PROTO_DST_PORT: u16 = 3;
    pub const PROTO_ICMP_ID: u16 = 4;
    pub const PROTO_ICMP_TYPE: u16 = 5;
    pub const PROTO_ICMP_CODE: u16 = 6;
    pub const PROTO_ICMPV6_ID: u16 = 7;
    pub const PROTO_ICMPV6_TYPE: u16 = 8;
    pub const PROTO_ICMPV6_CODE: u16 = 9;
}

const IPPROTO_ICMPV6: u8 = 58;

/// `IPS_SRC_NAT`: the source is translated.
const STATUS_SRC_NAT: u32 = 1 << 4;

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
    /// The kernel's name for the entry, which it gives to no other while this one lives.
    pub id: u32,
    zone: Option<u16>,
}

impl Flow {
    /// Family.
    pub fn family(&self) -> Family {
        self.original.source.into()
    }

    /// Whether its source is translated.
    pub fn is_source_translated(&self) -> bool {
        self.status & STATUS_SRC_NAT != 0
    }

    /// Reads the attributes of an entry.
    pub(super) fn read(attributes: &[u8]) -> Option<Self> {
        let (mut original, mut reply) = (None, None);
        let (mut mark, mut status, mut id, mut zone) = (0, 0, 0, None);
        for (kind, value) in values(attributes) {
            match kind {
                cta::TUPLE_ORIG => original = read_tuple(value),
                cta::TUPLE_REPLY => reply = read_tuple(value),
                cta::MARK => mark = u32_of(value)?,
                cta::STATUS => status = u32_of(value)?,
                cta::ID => id = u32_of(value)?,
                cta::ZONE => zone = Some(u16_of(value)?),
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
            id,
            zone,
        })
    }

    /// What names the entry, and no other that may have taken its place.
    pub(super) fn identity(&self) -> Vec<Attribute> {
        let mut attributes = vec![
            Attribute::Nested(cta::TUPLE_ORIG, self.original.write(self.protocol)),
            Attribute::u32(cta::ID, self.id),
        ];
        attributes.extend(self.zone.map(|zone| Attribute::u16(cta::ZONE, zone)));
        attributes
    }
}

impl Tuple {
    fn write(&self, protocol: u8) -> Vec<Attribute> {
        let layer4 = match self.layer4 {
            Layer4::Alone => Vec::new(),
            Layer4::Ports { source, destination } => vec![
                Attribute::u16(cta::PROTO_SRC_PORT, source),
                Attribute::u16(cta::PROTO_DST_PORT, destination),
            ],
            Layer4::Icmp { id, kind, code } if protocol == IPPROTO_ICMPV6 => vec![
                Attribute::u16(cta::PROTO_ICMPV6_ID, id),
                Attribute::u8(cta::PROTO_ICMPV6_TYPE, kind),
                Attribute::u8(cta::PROTO_ICMPV6_CODE, code),
            ],
            Layer4::Icmp { id, kind, code } => vec![
                Attribute::u16(cta::PROTO_ICMP_ID, id),
                Attribute::u8(cta::PROTO_ICMP_TYPE, kind),
                Attribute::u8(cta::PROTO_ICMP_CODE, code),
            ],
        };
        let number = [Attribute::u8(cta::PROTO_NUM, protocol)];
        let mut tuple = vec![
            Attribute::Nested(
                cta::TUPLE_IP,
                vec![source(self.source), destination(self.destination)],
            ),
            Attribute::Nested(cta::TUPLE_PROTO, number.into_iter().chain(layer4).collect()),
        ];
        tuple.extend(self.zone.map(|zone| Attribute::u16(cta::TUPLE_ZONE, zone)));
        tuple
    }
}

/// A source address, as the only or the first one in `CTA_TUPLE_IP`.
pub(super) fn source(address: IpAddr) -> Attribute {
    match address {
        IpAddr::V4(a) => Attribute::Octets(cta::IP_V4_SRC, a.octets().to_vec()),
        IpAddr::V6(a) => Attribute::Octets(cta::IP_V6_SRC, a.octets().to_vec()),
    }
}

fn destination(address: IpAddr) -> Attribute {
    match address {
        IpAddr::V4(a) => Attribute::Octets(cta::IP_V4_DST, a.octets().to_vec()),
        IpAddr::V6(a) => Attribute::Octets(cta::IP_V6_DST, a.octets().to_vec()),
    }
}

/// The tuple with its protocol's number.
fn read_tuple(attributes: &[u8]) -> Option<(u8, Tuple)> {
    let (mut ips, mut proto, mut zone) = (None, None, None);
    for (kind, value) in values(attributes) {
        match kind {
            cta::TUPLE_IP => ips = read_ips(value),
            cta::TUPLE_PROTO => proto = read_proto(value),
            cta::TUPLE_ZONE => zone = Some(u16_of(value)?),
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

fn read_ips(attributes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for (kind, value) in values(attributes) {
        match kind {
            cta::IP_V4_SRC | cta::IP_V6_SRC => source = ip_of(value),
            cta::IP_V4_DST | cta::IP_V6_DST => destination = ip_of(value),
            _ => {}
        }
    }
    source.zip(destination)
}

fn read_proto(attributes: &[u8]) -> Option<(u8, Layer4)> {
    let (mut protocol, mut ports, mut icmp) = (None, (None, None), (None, 0, 0));
    for (kind, value) in values(attributes) {
        match kind {
            cta::PROTO_NUM => protocol = value.first().copied(),
            cta::PROTO_SRC_PORT => ports.0 = u16_of(value),
            cta::PROTO_DST_PORT => ports.1 = u16_of(value),
            cta::PROTO_ICMP_ID | cta::PROTO_ICMPV6_ID => icmp.0 = u16_of(value),
            cta::PROTO_ICMP_TYPE | cta::PROTO_ICMPV6_TYPE => icmp.1 = *value.first()?,
            cta::PROTO_ICMP_CODE | cta::PROTO_ICMPV6_CODE => icmp.2 = *value.first()?,
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

/// The attributes with their types. One that is cut short ends them.
fn values(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = attributes;
    std::iter::from_fn(move || {
        let attribute = NlasIterator::new(rest).next()?.ok()?;
        let (length, kind) = (usize::from(attribute.length()), attribute.kind());
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn ip_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|a| Ipv4Addr::from(*a).into()),
        16 => value.first_chunk::<16>().map(|a| Ipv6Addr::from(*a).into()),
        _ => None,
    }
}

fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|n| u32::from_be_bytes(*n))
}

fn u16_of(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|n| u16::from_be_bytes(*n))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
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
                let written = tuple.write(protocol);
                let mut octets = vec![0; written.as_slice().buffer_len()];
                written.as_slice().emit(&mut octets);
                assert_eq!(read_tuple(&octets), Some((protocol, tuple)));
            }
        }
    }

    proptest! {
        /// Whatever arrives: no panic, no endless walk.
        #[test]
        fn any_octets_are_read_to_an_end(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Flow::read(&octets);
            let _ = read_tuple(&octets);
            prop_assert!(values(&octets).count() <= octets.len());
        }
    }
}
