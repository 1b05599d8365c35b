//! Packets made by hand, which no socket API would send.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep,
    TcpHeader, checksum::Sum16BitWords, icmpv4, icmpv6,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

use super::Family;
use crate::{
    error::{Context, Result},
    netns::Netns,
};

/// The number of UDP-Lite.
const UDP_LITE: u8 = 136;

/// The flags of a lone TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// A connection's first segment.
    Syn,
    /// The end of a connection that no host knows of.
    Rst,
    /// What no TCP sends.
    SynFin,
    /// None at all.
    Null,
}

/// An IP packet with a lone TCP segment.
///
/// # Errors
/// When the addresses are of two families.
pub fn tcp_segment(source: SocketAddr, destination: SocketAddr, flags: Flags) -> Result<Vec<u8>> {
    let mut header = TcpHeader::new(source.port(), destination.port(), 1, 1024);
    header.syn = matches!(flags, Flags::Syn | Flags::SynFin);
    header.fin = flags == Flags::SynFin;
    header.rst = flags == Flags::Rst;
    let mut packet = Vec::new();
    let written =
        ip(source.ip(), destination.ip()).map(|step| step.tcp_header(header).write(&mut packet, &[]));
    finish(written, packet)
}

/// An IP packet with a UDP datagram.
///
/// # Errors
/// When the addresses are of two families.
pub fn udp_datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    let step = ip(source.ip(), destination.ip()).map(|step| step.udp(source.port(), destination.port()));
    finish(step.map(|step| step.write(&mut packet, payload)), packet)
}

/// An IP packet of any protocol.
///
/// # Errors
/// When the addresses are of two families.
pub fn ip_packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    let step = ip(source, destination);
    finish(
        step.map(|step| step.write(&mut packet, IpNumber(protocol), payload)),
        packet,
    )
}

/// A UDP-Lite datagram (RFC 3828) with a checksum over all of it, without its IP header.
#[must_use]
pub fn udp_lite_datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    const HEADER: u8 = 8;
    let length = (payload.len() + usize::from(HEADER)) as u32;
    let ports = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
    let datagram = |checksum: [u8; 2]| [&ports, &[0; 2][..], &checksum, payload].concat();
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let sum = Sum16BitWords::new()
        .add_slice(&address(source.ip()))
        .add_slice(&address(destination.ip()))
        .add_4bytes(length.to_be_bytes())
        .add_2bytes([0, UDP_LITE])
        .add_slice(&datagram([0; 2]));
    datagram(sum.to_ones_complement_with_no_zero().to_ne_bytes())
}

/// An ICMP error: `source` cannot reach what `destination` never sent it.
///
/// # Errors
/// When the addresses are of two families.
pub fn icmp_error(source: IpAddr, destination: IpAddr) -> Result<Vec<u8>> {
    let quoted = udp_datagram(
        SocketAddr::new(destination, 7),
        SocketAddr::new(source, 7),
        b"never sent",
    )?;
    let mut packet = Vec::new();
    let written = ip(source, destination).map(|step| match source {
        IpAddr::V4(_) => {
            let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
            step.icmpv4(kind).write(&mut packet, &quoted)
        }
        IpAddr::V6(_) => {
            let kind = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
            step.icmpv6(kind).write(&mut packet, &quoted)
        }
    });
    finish(written, packet)
}

/// Sends an IP packet from inside a namespace, by its routes and whatever its source address says.
///
/// # Errors
/// When the packet is none, or there is no route.
pub fn inject(netns: &Netns, packet: &[u8]) -> Result<()> {
    let family = match packet.first().map(|octet| octet >> 4) {
        Some(6) => Family::V6,
        _ => Family::V4,
    };
    Injector::open(netns, family)?.send(packet)
}

/// A raw socket inside a namespace, for many packets of a family.
#[derive(Debug)]
pub struct Injector {
    socket: OwnedFd,
    family: Family,
}

impl Injector {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn open(netns: &Netns, family: Family) -> Result<Self> {
        let of = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let opened = netns.run(|| socket(of, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw))?;
        let socket = opened.context(|| "open a raw socket".into())?;
        Ok(Self { socket, family })
    }

    /// Sends a whole IP packet, by the namespace's routes, to the destination that its header says.
    ///
    /// # Errors
    /// When the packet is too short to have one, or the kernel refuses it.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::empty());
        let sent = match self.family {
            Family::V4 => destination(packet, 16).map(|octets: [u8; 4]| {
                let to = SocketAddrV4::new(octets.into(), 0);
                sendto(fd, packet, &SockaddrIn::from(to), flags)
            }),
            Family::V6 => destination(packet, 24).map(|octets: [u8; 16]| {
                let to = SocketAddrV6::new(octets.into(), 0, 0, 0);
                sendto(fd, packet, &SockaddrIn6::from(to), flags)
            }),
        };
        let sent = sent.ok_or_else(|| io::Error::other("no destination"));
        sent.and_then(|sent| sent.map_err(io::Error::from))
            .context(|| "send a raw packet".into())?;
        Ok(())
    }
}

fn destination<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

fn ip(source: IpAddr, destination: IpAddr) -> io::Result<PacketBuilderStep<IpHeaders>> {
    const HOPS: u8 = 64;
    // Lengths and protocol are the builder's to fill in.
    let headers = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header::new(0, HOPS, IpNumber::UDP, source.octets(), destination.octets());
            IpHeaders::Ipv4(header.map_err(io::Error::other)?, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let header = Ipv6Header {
                hop_limit: HOPS,
                source,
                destination,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => return Err(io::Error::other("the addresses are of two families")),
    };
    Ok(PacketBuilder::ip(headers))
}

fn finish<E: std::error::Error + Send + Sync + 'static>(
    written: io::Result<std::result::Result<(), E>>,
    packet: Vec<u8>,
) -> Result<Vec<u8>> {
    let written = written.and_then(|written| written.map_err(io::Error::other));
    written.context(|| "make a packet".into())?;
    Ok(packet)
}
