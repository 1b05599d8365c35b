//! The source NAT of other programs: the chains that a packet meets on its way out.
//!
//! Only what hangs on `postrouting` is read, chain by chain: kube-proxy alone may have a hundred thousand rules
//! elsewhere. `iptables-nft` writes to the same tables, and its rules are read as well; those of `iptables-legacy`
//! are in another part of the kernel, which shows them to its own tool alone.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::attr::{Attrs, Writer};
use super::error::NftError;
use super::foreign_rule::{ForeignRule, read_rule};
use super::observe::{
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM,
};
use super::observe::{NFTA_RULE_CHAIN, NFTA_RULE_TABLE, raw_elements};
use super::socket::Socket;
use super::types::hook_number;
use crate::model::Hook;
use crate::owned;

/// Families of tables that see IP packets: `NFPROTO_*` and nft's name.
pub(super) const TABLE_FAMILIES: [(u8, &str); 3] = [
    (libc::NFPROTO_IPV4 as u8, "ip"),
    (libc::NFPROTO_IPV6 as u8, "ip6"),
    (libc::NFPROTO_INET as u8, "inet"),
];

const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// A table with its family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its name.
    pub name: String,
}

/// What another program's table does to packets that leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatTable {
    /// The chains of type `nat` at `postrouting`.
    pub bases: BTreeSet<String>,
    /// Those, and all that packets may go to from them.
    pub chains: BTreeMap<String, Vec<ForeignRule>>,
}

/// The tables of other programs that translate sources.
pub type ForeignNat = BTreeMap<TableName, NatTable>;

impl TableName {
    /// Whether it is our own.
    pub(super) fn is_ours(&self) -> bool {
        i32::from(self.family) == libc::NFPROTO_INET && self.name == owned::TABLE
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = TABLE_FAMILIES.iter().find(|(number, _)| *number == self.family);
        write!(f, "{} {}", family.map_or("?", |(_, name)| name), self.name)
    }
}

/// Reads all of it.
pub fn foreign_nat(socket: &mut Socket) -> Result<ForeignNat, NftError> {
    let mut tables = ForeignNat::new();
    for (family, _) in TABLE_FAMILIES {
        for (table, base) in bases(socket, family)? {
            tables.entry(table).or_default().bases.insert(base);
        }
    }
    for (name, table) in &mut tables {
        let mut ahead: Vec<String> = table.bases.iter().cloned().collect();
        while let Some(chain) = ahead.pop() {
            if let Entry::Vacant(place) = table.chains.entry(chain) {
                let rules = rules(socket, name, place.key())?;
                ahead.extend(rules.iter().flat_map(ForeignRule::targets).cloned());
                place.insert(rules);
            }
        }
    }
    Ok(tables)
}

/// The base chain that these attributes are of, if it translates the sources of what leaves.
pub(super) fn nat_base(family: u8, attrs: Attrs<'_>) -> Option<(TableName, String)> {
    let hook = attrs.nested(NFTA_CHAIN_HOOK).u32(NFTA_HOOK_HOOKNUM)?;
    let is_nat = attrs.text(NFTA_CHAIN_TYPE) == Some("nat") && hook == hook_number(Hook::Postrouting);
    let name = attrs.text(NFTA_CHAIN_TABLE)?.to_owned();
    let table = TableName { family, name };
    (is_nat && !table.is_ours()).then_some((table, attrs.text(NFTA_CHAIN_NAME)?.to_owned()))
}

fn bases(socket: &mut Socket, family: u8) -> Result<Vec<(TableName, String)>, NftError> {
    let request = Writer::of_family(family);
    socket.dump(libc::NFT_MSG_GETCHAIN, &request, |bases: &mut Vec<_>, attrs| {
        bases.extend(nat_base(family, attrs));
    })
}

fn rules(socket: &mut Socket, table: &TableName, chain: &str) -> Result<Vec<ForeignRule>, NftError> {
    let request = Writer::of_family(table.family)
        .text(NFTA_RULE_TABLE, &table.name)
        .text(NFTA_RULE_CHAIN, chain);
    let mut rules = socket.dump(libc::NFT_MSG_GETRULE, &request, |rules: &mut Vec<_>, attrs| {
        let asked =
            attrs.text(NFTA_RULE_TABLE) == Some(&table.name) && attrs.text(NFTA_RULE_CHAIN) == Some(chain);
        if asked {
            rules.push(read_rule(attrs.nested(NFTA_RULE_EXPRESSIONS)));
        }
    })?;
    for rule in &mut rules {
        if let Some(map) = rule.verdict_map.take() {
            rule.goes_to(raw_elements(socket, table, &map)?);
        }
    }
    Ok(rules)
}
