//! Packets as the outside sees them, out of tcpdump's stream of captured frames.

use std::{
    fmt,
    io::{self, Read},
    net::IpAddr,
};

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};

use super::{place, timeline::Time};

/// What the first octets of the stream say: nanoseconds, in this machine's order of octets.
const MAGIC: [u8; 4] = 0xa1b2_3c4d_u32.to_ne_bytes();

/// The hop limit with which Linux sends.
const HOPS: u8 = 64;

/// A packet that came to the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When the kernel saw it.
    pub at: Time,
    /// Its source address.
    pub source: IpAddr,
    /// The host outside that it was for, by its place in [`place::OUTSIDE`].
    pub destination: usize,
    /// Its destination port, by which its pod is known.
    pub port: Option<u16>,
    /// What it carries.
    pub what: What,
    /// Whether a node has forwarded it, as it has every packet of a pod. What a node's own stack has sent comes as it
    /// was sent: its hop limit is whole.
    pub forwarded: bool,
    /// The name in its payload, where it has one: a UDP datagram's.
    pub name: Option<String>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// UDP.
    Datagram,
    /// TCP's first segment.
    Syn,
    /// TCP's RST.
    Reset,
    /// TCP's last segment of a side.
    Fin,
    /// Another segment of TCP.
    Segment,
    /// ICMP.
    Icmp,
    /// Another protocol.
    Other,
}

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Datagram => "UDP",
            Self::Syn => "TCP SYN",
            Self::Reset => "TCP RST",
            Self::Fin => "TCP FIN",
            Self::Segment => "TCP",
            Self::Icmp => "ICMP",
            Self::Other => "of another protocol",
        })
    }
}

impl Packet {
    /// Takes an Ethernet frame apart. `None` for what is no IP, and for what the protocols of the link itself
    /// say with link-local addresses.
    #[must_use]
    pub fn parse(at: Time, frame: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination, hops) = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    IpAddr::from(header.source_addr()),
                    IpAddr::from(header.destination_addr()),
                    header.ttl(),
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    IpAddr::from(header.source_addr()),
                    IpAddr::from(header.destination_addr()),
                    header.hop_limit(),
                )
            }
            NetSlice::Arp(_) => return None,
        };
        let destination = place::outside(destination)?;
        let (what, port, name) = match &sliced.transport {
            Some(TransportSlice::Udp(udp)) => {
                (What::Datagram, Some(udp.destination_port()), name(udp.payload()))
            }
            Some(TransportSlice::Tcp(tcp)) => (segment(tcp), Some(tcp.destination_port()), None),
            Some(TransportSlice::Icmpv6(icmp)) if is_neighbour_discovery(icmp.type_u8()) => return None,
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => (What::Icmp, None, None),
            _ => (What::Other, None, None),
        };
        Some(Self {
            at,
            source,
            destination,
            port,
            what,
            forwarded: hops < HOPS,
            name,
        })
    }
}

fn segment(tcp: &TcpSlice) -> What {
    match (tcp.syn(), tcp.rst(), tcp.fin()) {
        (true, ..) => What::Syn,
        (_, true, _) => What::Reset,
        (.., true) => What::Fin,
        _ => What::Segment,
    }
}

/// RFC 4861: solicitations and advertisements, and the redirect.
fn is_neighbour_discovery(kind: u8) -> bool {
    (133..=137).contains(&kind)
}

/// "NAME NUMBER"
fn name(payload: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(payload).ok()?;
    Some(text.split(' ').next()?.to_owned())
}

/// The frames of a pcap stream, each with the time at which the kernel saw it.
pub struct Frames<R> {
    stream: R,
}

impl<R: Read> Frames<R> {
    /// Reads the stream's header.
    ///
    /// # Errors
    /// When the stream ends, or is not one of nanoseconds and Ethernet.
    pub fn new(mut stream: R) -> io::Result<Self> {
        let mut header = [0; 24];
        stream.read_exact(&mut header)?;
        if header[..4] != MAGIC || word(&header, 5) != 1 {
            return Err(io::Error::other("not a capture of Ethernet in nanoseconds"));
        }
        Ok(Self { stream })
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// When the stream cannot be read, or ends in the middle of a frame.
    pub fn next(&mut self, frame: &mut Vec<u8>) -> io::Result<Option<Time>> {
        let mut header = [0; 16];
        match self.stream.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        frame.resize(word(&header, 2) as usize, 0);
        self.stream.read_exact(frame)?;
        Ok(Some(
            u64::from(word(&header, 0)) * 1_000_000_000 + u64::from(word(&header, 1)),
        ))
    }
}

/// A field of 32 bits, by its place.
fn word(header: &[u8], place: usize) -> u32 {
    let octets = header[place * 4..].first_chunk().copied();
    u32::from_ne_bytes(octets.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const SOURCE: [u8; 4] = [172, 18, 1, 1];
    const OUTSIDE: [u8; 4] = [172, 18, 0, 9];

    fn datagram() -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(SOURCE, OUTSIDE, 63)
            .udp(5, 1030)
            .write(&mut frame, b"hunt-6 77")
            .unwrap();
        frame
    }

    #[test]
    fn a_datagram_has_its_port_and_its_name() {
        let packet = Packet::parse(9, &datagram()).unwrap();
        let expected = Packet {
            at: 9,
            source: SOURCE.into(),
            destination: 1,
            port: Some(1030),
            what: What::Datagram,
            forwarded: true,
            name: Some("hunt-6".into()),
        };
        assert_eq!(packet, expected);
    }

    #[test]
    fn a_syn_has_its_port_alone_and_a_whole_hop_limit_is_a_nodes_own() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(
                [0xfd; 16],
                "fd00:172:18::8".parse::<std::net::Ipv6Addr>().unwrap().octets(),
                64,
            )
            .tcp(5, 1031, 1, 1)
            .syn()
            .write(&mut frame, &[])
            .unwrap();
        let packet = Packet::parse(9, &frame).unwrap();
        assert_eq!(
            (packet.destination, packet.port, packet.name),
            (0, Some(1031), None)
        );
        assert_eq!((packet.what, packet.forwarded), (What::Syn, false));
    }

    #[test]
    fn frames_come_out_as_they_went_in_with_their_time() {
        let (frame, mut stream) = (datagram(), Vec::new());
        stream.extend(MAGIC);
        for field in [0, 0, 0, 200, 1_u32] {
            stream.extend(field.to_ne_bytes());
        }
        let length = u32::try_from(frame.len()).unwrap();
        for field in [3, 5, length, length] {
            stream.extend(field.to_ne_bytes());
        }
        stream.extend(&frame);
        let mut frames = Frames::new(stream.as_slice()).unwrap();
        let mut read = Vec::new();
        assert_eq!(frames.next(&mut read).unwrap(), Some(3_000_000_005));
        assert_eq!(read, frame);
        assert_eq!(frames.next(&mut read).unwrap(), None);
        assert!(Frames::new(&stream[4..]).is_err());
    }
}
