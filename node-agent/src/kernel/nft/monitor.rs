//! Tells that another program has changed our table, or what its own do to packets that come by.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Nft;
use super::attr::Message;
use super::foreign::{Foreign, ForeignTable, TableName, base};
use super::observe::{NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_TABLE};
use crate::kernel::listener::Listener;

/// Group of all changes of nf_tables.
const NFNLGRP_NFTABLES: u32 = 7;
const NFTA_TABLE_NAME: u16 = 1;

/// A program may write its rules one by one.
const GATHER: Duration = Duration::from_millis(250);

/// One that takes ours away takes them at once.
const GATHER_OURS: Duration = Duration::from_millis(10);

/// Listens for changes of our table that others make.
pub struct TableMonitor {
    listener: Listener,
    /// Our own netlink port.
    portid: u32,
}

impl TableMonitor {
    /// Listens in the calling thread's network namespace, from now on. Needs a tokio runtime.
    pub fn open(ours: &Nft) -> io::Result<Self> {
        Ok(Self {
            listener: Listener::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], GATHER_OURS)?,
            portid: ours.portid(),
        })
    }

    /// Waits for a change, and for what comes with it. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> io::Result<()> {
        let portid = self.portid;
        let concerns = |message: &Message<'_>| {
            let family = message.payload.first().copied().unwrap_or_default();
            // The first attribute of every object is its table's name, and a table's its own.
            let table = message.attrs().text(NFTA_TABLE_NAME).map(|name| TableName {
                family,
                name: name.to_owned(),
            });
            message.portid != portid && table.is_some_and(|table| table.is_ours())
        };
        self.listener.changed(concerns).await
    }
}

/// Listens for changes of others' chains that packets of pods may meet.
pub struct ForeignMonitor {
    listener: Listener,
    watched: BTreeSet<(TableName, String)>,
}

impl ForeignMonitor {
    /// Listens in the calling thread's network namespace, from now on. Needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            listener: Listener::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], GATHER)?,
            watched: BTreeSet::new(),
        })
    }

    /// Which chains' changes are told, from now on, besides new base chains.
    pub fn watch(&mut self, foreign: &Foreign) {
        let of_table = |(name, table): (&TableName, &ForeignTable)| {
            let chains = table.chains.keys().cloned();
            chains.map(|chain| (name.clone(), chain)).collect::<Vec<_>>()
        };
        self.watched = foreign.iter().flat_map(of_table).collect();
    }

    /// Waits for a change, and for what comes with it. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> io::Result<()> {
        let watched = &self.watched;
        self.listener.changed(|message| concerns(watched, message)).await
    }
}

/// Whether it is about a base chain, or one that is watched.
fn concerns(watched: &BTreeSet<(TableName, String)>, message: &Message<'_>) -> bool {
    let (attrs, family) = (
        message.attrs(),
        message.payload.first().copied().unwrap_or_default(),
    );
    let chain = |table: u16, chain: u16| {
        let name = attrs.text(table)?.to_owned();
        Some((TableName { family, name }, attrs.text(chain)?.to_owned()))
    };
    let is_watched = |found: Option<_>| found.is_some_and(|found| watched.contains(&found));
    match i32::from(message.kind & 0xff) {
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => is_watched(chain(NFTA_RULE_TABLE, NFTA_RULE_CHAIN)),
        libc::NFT_MSG_DELCHAIN => is_watched(chain(NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME)),
        libc::NFT_MSG_NEWCHAIN => base(family, attrs).is_some(),
        libc::NFT_MSG_DELTABLE => {
            let gone = attrs.text(NFTA_TABLE_NAME);
            let of_table = |(table, _): &(TableName, String)| {
                table.family == family && Some(table.name.as_str()) == gone
            };
            watched.iter().any(of_table)
        }
        _ => false,
    }
}
