//! Conntrack requests and their answers.
//!
//! By the library's frames and not by its connection, whose task reads ahead of who listens into a queue without
//! bound: 35 MB for 100,000 entries, where frames hold one datagram.

use std::io;

use futures::{SinkExt, StreamExt, stream};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_proto::{NetlinkCodec, NetlinkFramed};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{SocketAddr, TokioSocket};

use crate::kernel::netlink::{self, NetlinkError};

/// What is asked.
pub(super) struct Request {
    pub family: NetfilterProtoFamily,
    pub message: ConntrackMessage,
}

type Frames = NetlinkFramed<NetfilterMessage, TokioSocket, NetlinkCodec>;

/// A conntrack socket, replaced by a new one when it is of no use any more.
pub(super) struct Wire(Option<Frames>);

impl Wire {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(Some(open()?)))
    }

    /// Sends requests, the last one with further flags, a dump's or `NLM_F_ACK`, and hands on each message of
    /// the answers and each refusal. Those before the last must not be dumps, and few enough for the refusal of
    /// each to find room in the socket's buffer: some hundreds.
    pub(super) async fn exchange(
        &mut self,
        requests: Vec<Request>,
        on_last: u16,
        mut each: impl FnMut(Result<ConntrackMessage, NetlinkError>),
    ) -> Result<(), NetlinkError> {
        // Abandoned midway, it is dropped with what is still to come.
        let mut frames = match self.0.take() {
            Some(frames) => frames,
            None => open()?,
        };
        let last = requests.len();
        let numbered = (1..).zip(requests).map(|(number, request)| {
            let flags = if number == last { on_last } else { 0 };
            Ok((request.number(number as u32, flags), SocketAddr::new(0, 0)))
        });
        frames.send_all(&mut stream::iter(numbered)).await?;
        loop {
            let (message, _) = frames.next().await.ok_or(NetlinkError::Closed)?;
            let end = netlink::end(&message);
            let is_last = end.is_some() && message.header.sequence_number as usize == last;
            match (end, message.payload) {
                (Some(Err(NetlinkError::Socket(error))), _) => return Err(error.into()),
                (Some(Err(refusal)), _) => each(Err(refusal)),
                (None, NetlinkPayload::InnerMessage(message)) => {
                    if let NetfilterMessageInner::Conntrack(message) = message.inner {
                        each(Ok(message));
                    }
                }
                _ => {}
            }
            if is_last {
                self.0 = Some(frames);
                return Ok(());
            }
        }
    }
}

impl Request {
    fn number(self, number: u32, flags: u16) -> NetlinkMessage<NetfilterMessage> {
        let header = NetfilterHeader::new(self.family, 0, 0);
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, self.message));
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = number;
        message.finalize();
        message
    }
}

fn open() -> io::Result<Frames> {
    netlink::open(NETLINK_NETFILTER).map(NetlinkFramed::new)
}
