//! nftables: the one table read and written by netlink.
//!
//! This is the only module that knows libnftnl, and the only one with `unsafe`. libnftnl puts together what
//! is sent; what is received is read by [`attr`], which is safe Rust. [`Nft`] blocks, for the time of a
//! commit in the kernel: it belongs on a thread of its own.
//!
//! `steps -> (lower, elements) -> batch -> socket`, and `socket -> attr -> (elements) -> observe`.

pub(super) mod attr;
mod batch;
mod elements;
mod error;
mod expr;
mod foreign;
mod foreign_compat;
mod foreign_reader;
mod foreign_rule;
mod lower;
mod monitor;
mod name;
mod observe;
mod socket;
mod steps;
mod types;
mod value;

use std::collections::BTreeMap;

use nix::errno::Errno;

pub use error::NftError;
pub use foreign::{Base, Foreign, ForeignTable, TableName};
pub use foreign_rule::{Action, ForeignRule, LinkMatch, MarkOf, MarkWrite, Match, State, Way};
pub use monitor::{ForeignMonitor, TableMonitor};

use crate::diff::{NftStep, ObservedTable};
use crate::model::DataType;
use batch::Transaction;
use observe::TableInfo;
use socket::{Answer, Socket};
use steps::Context;

/// The table `inet egressnat` in the network namespace of the thread that opened this.
///
/// On kernels from 6.9 the table belongs to this value's socket: nobody else can change it, `nft flush
/// ruleset` passes it by, and it stays when the socket is closed. The next [`Nft`] takes it over with
/// [`NftStep::AddTable`].
pub struct Nft {
    socket: Socket,
    /// The kernel has tables with an owner that outlive it.
    can_own: bool,
}

/// Whose the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// There is no table.
    Absent,
    /// Ours alone.
    Ours,
    /// Of an owner that is gone: [`NftStep::AddTable`] makes it ours.
    Orphan,
    /// Anybody's: the kernel has no owners (before 6.9), or the table was made without. Only
    /// [`NftStep::DeleteTable`] and [`NftStep::AddTable`] with all that is in it, in one transaction, give it
    /// an owner.
    Unprotected,
    /// Anybody's, and somebody has made it dormant: no packet meets it. It has to be made anew.
    Dormant,
    /// Another process's, which has this netlink port.
    Other(u32),
}

const NFT_TABLE_F_DORMANT: u32 = 1 << 0;
const NFT_TABLE_F_OWNER: u32 = 1 << 1;
const NFT_TABLE_F_PERSIST: u32 = 1 << 2;

impl Nft {
    /// Opens a socket, and asks the kernel once whether it knows owned tables.
    pub fn open() -> Result<Self, NftError> {
        let mut socket = Socket::open()?;
        let can_own = can_own_tables(&mut socket)?;
        Ok(Self { socket, can_own })
    }

    /// As on a kernel without owned tables: the table is anybody's to change.
    pub fn open_to_all() -> Result<Self, NftError> {
        let socket = Socket::open()?;
        let can_own = false;
        Ok(Self { socket, can_own })
    }

    /// The socket's netlink port, by which the kernel names who has changed something.
    pub fn portid(&self) -> u32 {
        self.socket.portid()
    }

    /// Whether the kernel can keep others from changing the table.
    pub fn can_own(&self) -> bool {
        self.can_own
    }

    /// Does all steps as one transaction, or none.
    ///
    /// [`NftError::Refused`] names the first step that the kernel refused. [`NftError::OwnedByOther`] says
    /// that the table has another owner. After any error the ruleset is as it was, save for
    /// [`NftError::Unconfirmed`], after which [`Nft::observe`] tells.
    pub fn apply(&mut self, steps: &[NftStep]) -> Result<(), NftError> {
        if steps.is_empty() {
            return Ok(());
        }
        let context = Context {
            table_flags: self.table_flags(steps)?,
            sets: self.set_types(steps)?,
        };
        let transaction = steps::encode(steps, &context)?;
        let answers = self.socket.transact(&transaction.pages())?;
        match first_refusal(&answers) {
            Some(answer) => Err(self.refusal(steps, &transaction, answer)),
            None if is_confirmed(&transaction, &answers) => Ok(()),
            None => Err(NftError::Unconfirmed),
        }
    }

    /// Reads the table; `None` where there is none.
    pub fn observe(&mut self) -> Result<Option<ObservedTable>, NftError> {
        match observe::table_info(&mut self.socket)? {
            Some(_) => observe::table(&mut self.socket).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the named counters: packets and octets. None where there is no table.
    pub fn counters(&mut self) -> Result<BTreeMap<String, (u64, u64)>, NftError> {
        observe::counters(&mut self.socket)
    }

    /// The number of the last change of any table in the network namespace: as long as it stays, nobody
    /// changed ours.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        observe::generation(&mut self.socket)
    }

    /// Reads what others' tables do to packets that come by.
    pub fn foreign(&mut self) -> Result<Foreign, NftError> {
        foreign::foreign(&mut self.socket)
    }

    /// Whose the table is.
    pub fn ownership(&mut self) -> Result<Ownership, NftError> {
        let portid = self.socket.portid();
        let info = observe::table_info(&mut self.socket)?;
        Ok(match info {
            None => Ownership::Absent,
            Some(TableInfo {
                owner: Some(owner), ..
            }) if owner == portid => Ownership::Ours,
            Some(TableInfo {
                owner: Some(owner), ..
            }) => Ownership::Other(owner),
            Some(TableInfo { flags, .. }) if flags & NFT_TABLE_F_DORMANT != 0 => Ownership::Dormant,
            Some(TableInfo { flags, .. }) if flags & NFT_TABLE_F_PERSIST != 0 => Ownership::Orphan,
            Some(_) => Ownership::Unprotected,
        })
    }

    /// The flags for each step that adds the table.
    fn table_flags(&mut self, steps: &[NftStep]) -> Result<BTreeMap<usize, Option<u32>>, NftError> {
        let mut flags = BTreeMap::new();
        if !steps.contains(&NftStep::AddTable) {
            return Ok(flags);
        }
        let mut ownership = self.ownership()?;
        for (number, step) in steps.iter().enumerate() {
            match step {
                NftStep::DeleteTable => ownership = Ownership::Absent,
                NftStep::AddTable => {
                    flags.insert(number, self.flags_to_add(ownership)?);
                    ownership = Ownership::Ours;
                }
                _ => {}
            }
        }
        Ok(flags)
    }

    /// The kernel refuses to give a table an owner that was made without one.
    fn flags_to_add(&self, ownership: Ownership) -> Result<Option<u32>, NftError> {
        match ownership {
            Ownership::Absent | Ownership::Orphan if self.can_own => {
                Ok(Some(NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST))
            }
            // No flag: not dormant either.
            Ownership::Absent | Ownership::Orphan | Ownership::Unprotected | Ownership::Dormant => {
                Ok(Some(0))
            }
            Ownership::Ours => Ok(None),
            Ownership::Other(portid) => Err(NftError::OwnedByOther { portid }),
        }
    }

    fn set_types(&mut self, steps: &[NftStep]) -> Result<BTreeMap<String, DataType>, NftError> {
        let mut types = BTreeMap::new();
        for name in steps::sets_to_know(steps) {
            if let Some(ty) = observe::set_data_type(&mut self.socket, name)? {
                types.insert(name.to_owned(), ty);
            }
        }
        Ok(types)
    }

    fn refusal(&mut self, steps: &[NftStep], transaction: &Transaction, answer: &Answer) -> NftError {
        let errno = Errno::from_raw(answer.errno);
        if errno == Errno::EPERM
            && let Ok(Ownership::Other(portid)) = self.ownership()
        {
            return NftError::OwnedByOther { portid };
        }
        let step = transaction.step(answer.seq).and_then(|number| steps.get(number));
        NftError::Refused {
            step: step.map_or_else(|| "commit the transaction".into(), NftStep::to_string),
            errno,
            detail: answer.detail.clone(),
        }
    }
}

/// A step that is refused may be the cause of later ones' refusals.
fn first_refusal(answers: &[Answer]) -> Option<&Answer> {
    answers.iter().filter(|a| a.errno != 0).min_by_key(|a| a.seq)
}

fn is_confirmed(transaction: &Transaction, answers: &[Answer]) -> bool {
    transaction
        .confirmation()
        .is_none_or(|seq| answers.iter().any(|a| a.seq == seq))
}

/// A transaction that is refused in any case tells by which of its messages are.
fn can_own_tables(socket: &mut Socket) -> Result<bool, NftError> {
    let probe = steps::probe(NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST).map_err(NftError::Malformed)?;
    let answers = socket.transact(&probe.pages())?;
    let first = first_refusal(&answers).ok_or(NftError::Unconfirmed)?;
    match (probe.step(first.seq), Errno::from_raw(first.errno)) {
        (Some(1), Errno::EEXIST) => Ok(true),
        (Some(0), Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
        (_, source) => Err(NftError::Socket {
            action: "use nf_tables",
            source,
        }),
    }
}
