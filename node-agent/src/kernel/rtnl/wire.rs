//! rtnetlink messages on their way out and back.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::NetError;
use crate::kernel::netlink::{Connection, NetlinkError, Request};

/// How often a dump is begun anew when others change what it reads.
const ATTEMPTS: usize = 8;

/// An rtnetlink socket.
pub(super) struct Wire(Connection);

impl Wire {
    pub(super) fn open() -> Result<Self, NetError> {
        Connection::open(NETLINK_ROUTE).map(Self).map_err(NetError::Open)
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
            match self.exchange(&request, NLM_F_DUMP, each).await {
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
        request: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut answers = Vec::new();
        self.exchange(request, flags | NLM_F_ACK, |answer| answers.push(answer))
            .await?;
        Ok(answers)
    }

    async fn exchange(
        &mut self,
        request: &RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        let mut payload = vec![0; request.buffer_len()];
        request.serialize(&mut payload);
        let kind = request.message_type();
        let request = Request {
            kind,
            flags,
            payload: &payload,
        };
        self.0
            .exchange(request, |kind, payload| {
                if let Some(message) = decode(kind, payload) {
                    each(message);
                }
            })
            .await
    }
}

/// A message, unless it holds what the library cannot read. Such a thing is of a kind that we never make.
pub(super) fn decode(kind: u16, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::deserialize(&header, payload)
        .inspect_err(|error| tracing::debug!(kind, %error, "skipped an unreadable rtnetlink message"))
        .ok()
}
