//! Packets as they are seen, taken apart.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Type, Icmpv6Type, NetHeaders, PacketHeaders, TcpHeader, TcpOptionElement, TransportHeader,
};

use super::vxlan::{self, Tunnelled};

/// An IP packet as it was seen on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The interface's name.
    pub interface: String,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport,
    /// The packet inside, where this one is the tunnel's.
    pub tunnelled: Option<Box<Tunnelled>>,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// SYN is set, with or without ACK.
        syn: bool,
        /// The maximum segment size option.
        mss: Option<u16>,
    },
    /// A UDP datagram: source and destination port.
    Udp(u16, u16),
    /// ICMP or ICMPv6.
    Icmp {
        /// The type.
        kind: u8,
        /// The identifier, of an echo.
        id: Option<u16>,
    },
    /// A fragment, or a protocol that is not taken apart.
    Other {
        /// The number of the IP protocol.
        protocol: u8,
        /// What follows the IP headers.
        payload: Vec<u8>,
    },
}

impl Packet {
    /// Takes an Ethernet frame apart. `None` for what is no IP. Of what is broken beyond the addresses, these are told.
    #[must_use]
    pub fn parse(interface: &str, frame: &[u8]) -> Option<Self> {
        Self::whole(interface, frame).or_else(|| Self::broken(interface, frame))
    }

    fn broken(interface: &str, frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        fn address<const N: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
        where
            [u8; N]: Into<IpAddr>,
        {
            let octets: [u8; N] = packet.get(at..at + N)?.try_into().ok()?;
            Some(octets.into())
        }
        let (source, destination, protocol) = match frame.get(12..14)? {
            [0x08, 0x00] => (address::<4>(packet, 12)?, address::<4>(packet, 16)?, packet[9]),
            [0x86, 0xdd] => (address::<16>(packet, 8)?, address::<16>(packet, 24)?, packet[6]),
            _ => return None,
        };
        Some(Self {
            interface: interface.to_owned(),
            source,
            destination,
            transport: Transport::Other {
                protocol,
                payload: Vec::new(),
            },
            tunnelled: None,
        })
    }

    fn whole(interface: &str, frame: &[u8]) -> Option<Self> {
        let headers = PacketHeaders::from_ethernet_slice(frame).ok()?;
        let (source, destination) = match headers.net.as_ref()? {
            NetHeaders::Ipv4(header, _) => (IpAddr::from(header.source), IpAddr::from(header.destination)),
            NetHeaders::Ipv6(header, _) => (IpAddr::from(header.source), IpAddr::from(header.destination)),
            NetHeaders::Arp(_) => return None,
        };
        let transport = match headers.transport {
            Some(TransportHeader::Tcp(tcp)) => Transport::Tcp {
                ports: (tcp.source_port, tcp.destination_port),
                syn: tcp.syn,
                mss: mss(&tcp),
            },
            Some(TransportHeader::Udp(udp)) => Transport::Udp(udp.source_port, udp.destination_port),
            Some(TransportHeader::Icmpv4(icmp)) => Transport::Icmp {
                kind: icmp.to_bytes()[0],
                id: match icmp.icmp_type {
                    Icmpv4Type::EchoRequest(echo) | Icmpv4Type::EchoReply(echo) => Some(echo.id),
                    _ => None,
                },
            },
            Some(TransportHeader::Icmpv6(icmp)) => Transport::Icmp {
                kind: icmp.icmp_type.type_u8(),
                id: match icmp.icmp_type {
                    Icmpv6Type::EchoRequest(echo) | Icmpv6Type::EchoReply(echo) => Some(echo.id),
                    _ => None,
                },
            },
            Some(TransportHeader::Igmp(_)) | None => Transport::Other {
                protocol: protocol(headers.net.as_ref()?)?,
                payload: headers.payload.slice().to_vec(),
            },
        };
        let tunnelled = match transport {
            Transport::Udp(..) => vxlan::parse(interface, headers.payload.slice()).map(Box::new),
            _ => None,
        };
        Some(Self {
            interface: interface.to_owned(),
            source,
            destination,
            transport,
            tunnelled,
        })
    }

    /// Whether it is part of what `port` of the packet's client does: a TCP segment or a UDP datagram from it.
    #[must_use]
    pub fn is_from_port(&self, port: u16) -> bool {
        matches!(self.transport, Transport::Tcp { ports: (from, _), .. } | Transport::Udp(from, _) if from == port)
    }

    /// Whether it is an echo request.
    #[must_use]
    pub fn is_ping(&self) -> bool {
        let request = if self.source.is_ipv4() { 8 } else { 128 };
        matches!(self.transport, Transport::Icmp { kind, .. } if kind == request)
    }

    /// Its source port, or echo identifier.
    #[must_use]
    pub fn source_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Tcp { ports: (from, _), .. } | Transport::Udp(from, _) => Some(from),
            Transport::Icmp { id, .. } => id,
            Transport::Other { .. } => None,
        }
    }
}

/// The number of the protocol after the IP headers.
fn protocol(net: &NetHeaders) -> Option<u8> {
    match net {
        NetHeaders::Ipv4(header, extensions) => Some(extensions.next_header(header.protocol).ok()?.0),
        NetHeaders::Ipv6(header, extensions) => Some(extensions.next_header(header.next_header).ok()?.0),
        NetHeaders::Arp(_) => None,
    }
}

fn mss(header: &TcpHeader) -> Option<u16> {
    header
        .options_iterator()
        .flatten()
        .find_map(|option| match option {
            TcpOptionElement::MaximumSegmentSize(size) => Some(size),
            _ => None,
        })
}
