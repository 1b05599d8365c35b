//! Netlink messages and attributes read from, and small requests written to, plain octets.
//!
//! What the kernel sends is read here without C and without `unsafe`: a length that does not fit ends the
//! walk, it never leaves the buffer.

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// Length of `struct nfgenmsg`, which follows the header in all nf_tables messages.
pub const NFGEN: usize = 4;

/// The flags in an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// One netlink message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Sequence number.
    pub seq: u32,
    /// Netlink port of who sent it; of a notification, of who made the change.
    pub portid: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Attributes one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a>(pub &'a [u8]);

/// The messages of a datagram.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_ne(datagram)? as usize;
        let payload = datagram.get(HEADER..length)?;
        let message = Message {
            kind: u16_ne(datagram.get(4..)?)?,
            flags: u16_ne(datagram.get(6..)?)?,
            seq: u32_ne(datagram.get(8..)?)?,
            portid: u32_ne(datagram.get(12..)?)?,
            payload,
        };
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

impl<'a> Message<'a> {
    /// The attributes of an nf_tables message.
    pub fn attrs(&self) -> Attrs<'a> {
        Attrs(self.payload.get(NFGEN..).unwrap_or_default())
    }
}

impl<'a> Attrs<'a> {
    /// All of them with their types.
    pub fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16_ne(rest)?);
            let kind = u16_ne(rest.get(2..)?)? & TYPE_MASK;
            let value = rest.get(4..length)?;
            rest = rest.get(aligned(length)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The value of the first of a type.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The attributes within the first of a type; none where there is no such attribute.
    pub fn nested(self, kind: u16) -> Attrs<'a> {
        Attrs(self.get(kind).unwrap_or_default())
    }

    /// A number of 32 bits in network byte order, as nf_tables has nearly all its numbers.
    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A number of 64 bits in network byte order.
    pub fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text with or without its NUL.
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }
}

/// Attributes for a request.
#[derive(Debug)]
pub struct Writer {
    /// `NFPROTO_*` of the table.
    family: u8,
    attrs: Vec<u8>,
}

impl Default for Writer {
    /// For a table of family `inet`.
    fn default() -> Self {
        Self::of_family(libc::NFPROTO_INET as u8)
    }
}

impl Writer {
    /// For a table of a family, `NFPROTO_*`.
    pub fn of_family(family: u8) -> Self {
        let attrs = Vec::new();
        Self { family, attrs }
    }

    /// With a text, its NUL included. Names are far shorter than an attribute may be.
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.octets(kind, &value)
    }

    /// With a number of 32 bits in network byte order.
    pub fn u32(self, kind: u16, number: u32) -> Self {
        self.octets(kind, &number.to_be_bytes())
    }

    fn octets(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.attrs.extend(length.to_ne_bytes());
        self.attrs.extend(kind.to_ne_bytes());
        self.attrs.extend(value);
        self.attrs.resize(aligned(self.attrs.len()), 0);
        self
    }

    /// The request as one message.
    pub fn message(&self, kind: u16, flags: u16, seq: u32) -> Vec<u8> {
        let length = (HEADER + NFGEN + self.attrs.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(seq.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend([self.family, 0, 0, 0]);
        message.extend(&self.attrs);
        message
    }
}

/// The next multiple of four.
pub fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A number of 32 bits in host byte order at the start of `octets`.
pub fn u32_ne(octets: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*octets.first_chunk()?))
}

fn u16_ne(octets: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*octets.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let octets = Writer::default()
            .text(1, "egressnat")
            .u32(2, 7)
            .message(99, 5, 42);
        let all: Vec<_> = messages(&octets).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].flags, all[0].seq), (99, 5, 42));
        assert_eq!(all[0].attrs().text(1), Some("egressnat"));
        assert_eq!(all[0].attrs().u32(2), Some(7));
        assert_eq!(all[0].attrs().get(3), None);
    }

    proptest! {
        /// Whatever arrives: no panic, no endless walk.
        #[test]
        fn any_octets_are_read_to_an_end(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&octets) {
                for (_, value) in message.attrs().iter() {
                    prop_assert!(Attrs(value).iter().count() <= value.len());
                }
            }
        }
    }
}
