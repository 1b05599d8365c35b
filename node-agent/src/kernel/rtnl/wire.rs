//! rtnetlink requests and their answers.
//!
//! They go by [`Handle::request`], not by `execute` of the library's requests: that one takes a connection that
//! died for success, and cannot tell a dump that others disturbed from a good one.

use std::future::ready;
use std::io;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use futures::stream::{once, select};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::Handle;
use tokio::task::JoinSet;

use super::NetError;
use crate::kernel::netlink::{self, NetlinkError};

/// How often a dump is begun anew when others change what it reads.
const ATTEMPTS: usize = 8;

/// A connection to the kernel, replaced by a new one when it is of no use any more.
pub(super) struct Wire(Option<Connection>);

impl Wire {
    pub(super) fn open() -> Result<Self, NetError> {
        let connection = Connection::open().map_err(NetError::Open)?;
        Ok(Self(Some(connection)))
    }

    /// What `keep` makes of each message of a dump, taken anew until nobody disturbs it.
    pub(super) async fn dump<T>(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        mut keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetError> {
        let mut kept = Vec::new();
        for _ in 0..ATTEMPTS {
            kept.clear();
            let each = |message| kept.extend(keep(message));
            match self.exchange(request.clone(), NLM_F_DUMP, each).await {
                Ok(()) => return Ok(kept),
                Err(NetlinkError::Interrupted) => {}
                Err(source) => return Err(NetError::Read { what, source }),
            }
        }
        let source = NetlinkError::Interrupted;
        Err(NetError::Read { what, source })
    }

    /// Makes a change, or asks for one object.
    pub(super) async fn request(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut answers = Vec::new();
        self.exchange(request, flags | NLM_F_ACK, |answer| answers.push(answer))
            .await?;
        Ok(answers)
    }

    async fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        // Abandoned midway, it is dropped with what is still to come.
        let mut connection = match self.0.take() {
            Some(connection) => connection,
            None => Connection::open()?,
        };
        let outcome = connection.exchange(request, flags, each).await;
        if !matches!(outcome, Err(NetlinkError::Socket(_) | NetlinkError::Closed)) {
            self.0 = Some(connection);
        }
        outcome
    }
}

struct Connection {
    handle: Handle,
    /// What answers no request.
    unsolicited: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// The task between handle and socket. Ends when it is dropped.
    _task: JoinSet<()>,
}

impl Connection {
    fn open() -> io::Result<Self> {
        let (mut connection, handle, unsolicited) = rtnetlink::from_socket(netlink::open(NETLINK_ROUTE)?);
        // Without its last message an answer may be cut short.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let mut task = JoinSet::new();
        task.spawn(connection);
        Ok(Self {
            handle,
            unsolicited,
            _task: task,
        })
    }

    /// Returns [`NetlinkError::Interrupted`] after the last message of a dump that others disturbed: what was
    /// handed on is then incomplete or doubled.
    async fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | flags;
        let answers = self.handle.request(request).map_err(|_| NetlinkError::Closed)?;
        let unsolicited = self.unsolicited.by_ref().map(|(message, _)| message);
        let lost = unsolicited.filter(|m| ready(matches!(m.payload, NetlinkPayload::Overrun(_))));
        // Whatever ends the answer ends the wait.
        let answers = answers.map(Some).chain(once(ready(None)));
        let mut answers = select(answers, lost.map(Some));
        let mut interrupted = false;
        while let Some(Some(message)) = answers.next().await {
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            if let Some(end) = netlink::end(&message) {
                end?;
                return match interrupted {
                    true => Err(NetlinkError::Interrupted),
                    false => Ok(()),
                };
            }
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                each(message);
            }
        }
        Err(NetlinkError::Closed)
    }
}
