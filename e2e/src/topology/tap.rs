//! Seeing what passes an interface, by a packet socket: whatever comes after it was opened is seen.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
    },
};

use super::Packet;
use crate::{
    error::{Context, Error, Result},
    netns::Netns,
    wait,
};

/// `PACKET_OUTGOING` of packet(7): the packet leaves by the interface.
const OUTGOING: u8 = 4;
/// Room for what comes between two looks, in octets: a transfer of some megabytes.
const BUFFER: usize = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(5);

/// An open packet socket and what it saw so far.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    interfaces: BTreeMap<usize, String>,
    packets: Vec<Packet>,
}

impl Tap {
    /// Sees every IP packet that comes in by one of these interfaces of a namespace.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses the socket.
    pub fn incoming(netns: &Netns, interfaces: &[&str]) -> Result<Self> {
        let opened = netns.run(|| {
            let index = |name: &&str| Ok((if_nametoindex(*name)? as usize, (*name).to_owned()));
            let interfaces = interfaces.iter().map(index).collect::<nix::Result<_>>()?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            Ok((socket, interfaces))
        })?;
        let (socket, interfaces) = opened
            .map_err(|error: Errno| error)
            .context(|| "open a packet socket".into())?;
        Ok(Self {
            socket,
            interfaces,
            packets: Vec::new(),
        })
    }

    /// Everything seen so far.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn packets(&mut self) -> Result<&[Packet]> {
        let mut frame = vec![0; 1 << 17];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((length, from)) => self.keep(&frame[..length], from),
                Err(Errno::EAGAIN) => return Ok(&self.packets),
                Err(error) => return Err(error).context(|| "read a packet socket".into()),
            }
        }
    }

    /// Everything seen since the last time, which is forgotten.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn take(&mut self) -> Result<Vec<Packet>> {
        self.packets()?;
        Ok(std::mem::take(&mut self.packets))
    }

    fn keep(&mut self, frame: &[u8], from: Option<LinkAddr>) {
        let Some(from) = from.filter(|from| from.pkttype() != OUTGOING) else {
            return;
        };
        let name = self.interfaces.get(&from.ifindex());
        self.packets
            .extend(name.and_then(|name| Packet::parse(name, frame)));
    }

    /// Waits until a packet was seen that satisfies `wanted`; returns the first.
    ///
    /// # Errors
    /// After some seconds, with what was seen.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        wait::until(what, DEADLINE, || {
            let packets = self.packets()?;
            let found = packets.iter().find(|packet| wanted(packet)).cloned();
            found.ok_or_else(|| Error::State(format!("seen: {packets:#?}")))
        })
    }

    /// How many packets were seen that satisfy `wanted`.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn count(&mut self, wanted: impl Fn(&Packet) -> bool) -> Result<usize> {
        Ok(self.packets()?.iter().filter(|packet| wanted(packet)).count())
    }
}
