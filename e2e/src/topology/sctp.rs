//! SCTP packets (RFC 9260), of which this kernel may have no sockets.

/// The association's first two packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// From the client: the association's first packet.
    Init,
    /// The answer.
    InitAck,
}

/// The tag that both sides use.
const TAG: u32 = 0x0123_4567;
/// Where the checksum is.
const CHECKSUM: std::ops::Range<usize> = 8..12;

/// A packet with one chunk, without its IP header.
#[must_use]
pub fn sctp_packet(source: u16, destination: u16, chunk: Chunk) -> Vec<u8> {
    let (kind, verification_tag) = match chunk {
        Chunk::Init => (1, 0),
        Chunk::InitAck => (2, TAG),
    };
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(u32::to_be_bytes(verification_tag));
    packet.extend([0; 4]);
    // The chunk: kind, flags, length; tag, window, streams out and in, first sequence number.
    packet.extend([kind, 0, 0, 20]);
    packet.extend(TAG.to_be_bytes());
    packet.extend(65536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1_u32.to_be_bytes());
    let checksum = crc32c(&packet).to_le_bytes();
    packet[CHECKSUM].copy_from_slice(&checksum);
    packet
}

/// Whether the checksum is that of the packet.
#[must_use]
pub fn is_intact(packet: &[u8]) -> bool {
    let mut zeroed = packet.to_vec();
    let Some(checksum) = zeroed.get_mut(CHECKSUM) else {
        return false;
    };
    let found = checksum.to_vec();
    checksum.fill(0);
    crc32c(&zeroed).to_le_bytes()[..] == found
}

/// CRC32c (RFC 3720, appendix B.4), bit by bit.
fn crc32c(octets: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
    let crc = octets.iter().fold(u32::MAX, |crc, octet| {
        (0..8).fold(crc ^ u32::from(*octet), |crc, _| step(crc))
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert!(is_intact(&sctp_packet(1, 2, Chunk::Init)));
        let mut changed = sctp_packet(1, 2, Chunk::Init);
        changed[0] ^= 1;
        assert!(!is_intact(&changed));
    }
}
