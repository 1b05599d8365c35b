//! Tells that another program has changed what it does to the sources of packets.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;
use tokio::time::{Instant, timeout_at};

use super::attr::{self, Message};
use super::foreign::{ForeignNat, TableName, nat_base};
use super::observe::{NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_TABLE};
use crate::kernel::netlink;

/// Group of all changes of nf_tables.
const NFNLGRP_NFTABLES: u32 = 7;
const NFTA_TABLE_NAME: u16 = 1;

/// A program may write its rules one by one.
const GATHER: Duration = Duration::from_millis(100);

/// What overflows is not lost: it is reported as a change.
const SOCKET_BUFFER: libc::c_int = 1024 * 1024;
const DATAGRAM: usize = 64 << 10;

/// Listens for changes of chains that may translate sources.
pub struct NatMonitor {
    socket: TokioSocket,
    watched: BTreeSet<(TableName, String)>,
    /// When a change came that nobody has been told of.
    pending: Option<Instant>,
}

impl NatMonitor {
    /// Listens in the calling thread's network namespace, from now on. Needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let mut socket = netlink::open(NETLINK_NETFILTER)?;
        let inner = socket.socket_mut();
        inner.set_rx_buf_sz(SOCKET_BUFFER)?;
        inner.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self {
            socket,
            watched: BTreeSet::new(),
            pending: None,
        })
    }

    /// Which chains' changes are told, from now on, besides new chains at `postrouting`.
    pub fn watch(&mut self, nat: &ForeignNat) {
        let of_table = |(name, table): (&TableName, &super::NatTable)| {
            let chains = table.chains.keys().cloned();
            chains.map(|chain| (name.clone(), chain)).collect::<Vec<_>>()
        };
        self.watched = nat.iter().flat_map(of_table).collect();
    }

    /// Waits for a change, and for what comes with it. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let concerns = match self.pending {
                None => self.receive().await?,
                Some(first) => match timeout_at(first + GATHER, self.receive()).await {
                    Ok(concerns) => concerns?,
                    Err(_) => {
                        self.pending = None;
                        return Ok(());
                    }
                },
            };
            if concerns && self.pending.is_none() {
                self.pending = Some(Instant::now());
            }
        }
    }

    /// Whether what has just come concerns us.
    async fn receive(&mut self) -> io::Result<bool> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        match self.socket.recv(&mut datagram).await {
            Ok(()) => Ok(attr::messages(&datagram).any(|message| self.concerns(&message))),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn concerns(&self, message: &Message<'_>) -> bool {
        let (attrs, family) = (
            message.attrs(),
            message.payload.first().copied().unwrap_or_default(),
        );
        let chain = |table: u16, chain: u16| {
            let name = attrs.text(table)?.to_owned();
            Some((TableName { family, name }, attrs.text(chain)?.to_owned()))
        };
        let is_watched = |found: Option<_>| found.is_some_and(|found| self.watched.contains(&found));
        match i32::from(message.kind & 0xff) {
            libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => {
                is_watched(chain(NFTA_RULE_TABLE, NFTA_RULE_CHAIN))
            }
            libc::NFT_MSG_DELCHAIN => is_watched(chain(NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME)),
            libc::NFT_MSG_NEWCHAIN => nat_base(family, attrs).is_some(),
            libc::NFT_MSG_DELTABLE => {
                let gone = attrs.text(NFTA_TABLE_NAME);
                let of_table = |(table, _): &(TableName, String)| {
                    table.family == family && Some(table.name.as_str()) == gone
                };
                self.watched.iter().any(of_table)
            }
            _ => false,
        }
    }
}
