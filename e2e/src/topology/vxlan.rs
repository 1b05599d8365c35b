//! The tunnel's packets: VXLAN with group policy (draft-smith-vxlan-group-policy).

use std::net::SocketAddr;

use etherparse::{EtherType, Ethernet2Header};

use super::Packet;
use crate::{
    error::{Context, Error, Result},
    netns::Netns,
};

/// The tunnel's UDP port.
pub const TUNNEL_PORT: u16 = 5770;
/// The tunnel's network identifier.
pub const VNI: u32 = 770_770;

/// Flag: the network identifier is valid.
const FLAG_VNI: u8 = 0x08;
/// Flag: the group policy is valid.
const FLAG_GROUP: u8 = 0x80;
const HEADER: usize = 8;

/// What a packet of the tunnel carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnelled {
    /// The group policy, which is the policy's id; 0 for a reply.
    pub id: u16,
    /// The packet.
    pub packet: Packet,
}

/// The headers around a tunnelled packet.
#[derive(Clone, Copy, Debug)]
pub struct Encapsulation {
    /// The group policy.
    pub id: u16,
    /// Source MAC address, which tells the receiver which peer sends.
    pub source: [u8; 6],
    /// Destination MAC address, the receiver's tunnel device's.
    pub destination: [u8; 6],
}

impl Encapsulation {
    /// The tunnel's device has this address on a node with this underlay address.
    #[must_use]
    pub fn mac(underlay: std::net::Ipv4Addr) -> [u8; 6] {
        let [a, b, c, d] = underlay.octets();
        [0x02, 0x65, a, b, c, d]
    }

    fn payload(&self, packet: &[u8]) -> Result<Vec<u8>> {
        let [_, v0, v1, v2] = VNI.to_be_bytes();
        let [i0, i1] = self.id.to_be_bytes();
        let mut payload = vec![FLAG_VNI | FLAG_GROUP, 0, i0, i1, v0, v1, v2, 0];
        let version = packet.first().map_or(0, |octet| octet >> 4);
        let ethernet = Ethernet2Header {
            source: self.source,
            destination: self.destination,
            ether_type: if version == 4 {
                EtherType::IPV4
            } else {
                EtherType::IPV6
            },
        };
        ethernet
            .write(&mut payload)
            .context(|| "write an Ethernet header".into())?;
        payload.extend(packet);
        Ok(payload)
    }
}

/// Sends an IP packet by the tunnel's protocol to `node`, from inside a namespace, as its tunnel device would.
///
/// # Errors
/// When there is no route to the node.
pub fn send_tunnelled(
    netns: &Netns,
    node: std::net::IpAddr,
    around: Encapsulation,
    packet: &[u8],
) -> Result<()> {
    let payload = around.payload(packet)?;
    let any: SocketAddr = if node.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let sent = netns.run(|| std::net::UdpSocket::bind(any)?.send_to(&payload, (node, TUNNEL_PORT)))?;
    match sent.context(|| format!("send to {node}, port {TUNNEL_PORT}"))? {
        length if length == payload.len() => Ok(()),
        length => Err(Error::State(format!(
            "only {length} of {} octets were sent",
            payload.len()
        ))),
    }
}

/// The packet inside a UDP payload, where that is the tunnel's.
pub(super) fn parse(interface: &str, payload: &[u8]) -> Option<Tunnelled> {
    let (header, frame) = payload.split_at_checked(HEADER)?;
    let [flags, _, i0, i1, v0, v1, v2, _] = *header else {
        return None;
    };
    if flags & FLAG_VNI == 0 || u32::from_be_bytes([0, v0, v1, v2]) != VNI {
        return None;
    }
    let flagged = flags & FLAG_GROUP != 0;
    Some(Tunnelled {
        id: if flagged { u16::from_be_bytes([i0, i1]) } else { 0 },
        packet: Packet::parse(interface, frame)?,
    })
}
