//! What other programs' tables do to packets that come by.
//!
//! Read is what packets may meet from the base chains on, chain by chain, without the chains that kube-proxy has for
//! each Service: it alone may have a hundred thousand rules. `iptables-nft` writes to the same tables, and its rules are
//! read as well; those of `iptables-legacy` are in another part of the kernel, which shows them to its own tool alone.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::attr::{Attrs, Writer};
use super::error::NftError;
use super::foreign_reader::{Pending, read_rule};
use super::foreign_rule::{ForeignRule, Match};
use super::observe::{
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
};
use super::observe::{NFTA_RULE_CHAIN, NFTA_RULE_TABLE, raw_elements};
use super::socket::Socket;
use super::types::hook_of;
use crate::model::Hook;
use crate::owned;

/// Families of tables that see IP packets: `NFPROTO_*` and nft's name.
pub(super) const TABLE_FAMILIES: [(u8, &str); 3] = [
    (libc::NFPROTO_IPV4 as u8, "ip"),
    (libc::NFPROTO_IPV6 as u8, "ip6"),
    (libc::NFPROTO_INET as u8, "inet"),
];

const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// kube-proxy's chains for Services, as their names begin: with iptables, and in its own table with nftables.
const OF_SERVICES: [&str; 10] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-XLB-",
];
const OF_SERVICES_NFT: [&str; 8] = [
    "services",
    "service-",
    "endpoint-",
    "external-",
    "firewall-",
    "nodeport",
    "cluster-ips-check",
    "reject-chain",
];

/// Where those lead that mark packets to be masqueraded.
const MARKING: [&str; 3] = ["KUBE-MARK-MASQ", "KUBE-MARK-DROP", "mark-for-masquerade"];

/// A table with its family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its name.
    pub name: String,
}

/// What another program's table does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignTable {
    /// The chains that the kernel leads packets to, by name.
    pub bases: BTreeMap<String, Base>,
    /// Those, and all that packets may go to from them.
    pub chains: BTreeMap<String, Vec<ForeignRule>>,
}

/// A chain that the kernel leads packets to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where.
    pub hook: Hook,
    /// It is of type `nat`: it sees the first packet of a connection.
    pub nat: bool,
    /// When: lower comes first.
    pub priority: i32,
    /// What comes to its end is dropped.
    pub drops: bool,
}

/// Other programs' tables.
pub type Foreign = BTreeMap<TableName, ForeignTable>;

impl TableName {
    /// Whether it is our own.
    pub(super) fn is_ours(&self) -> bool {
        i32::from(self.family) == libc::NFPROTO_INET && self.name == owned::TABLE
    }

    /// Whether packets are not followed into a chain.
    fn leaves_out(&self, chain: &str) -> bool {
        let begins = |names: &[&str]| names.iter().any(|name| chain.starts_with(name));
        match self.name.as_str() {
            "kube-proxy" => begins(&OF_SERVICES_NFT),
            _ => begins(&OF_SERVICES),
        }
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = TABLE_FAMILIES.iter().find(|(number, _)| *number == self.family);
        write!(f, "{} {}", family.map_or("?", |(_, name)| name), self.name)
    }
}

/// Reads all of it.
pub fn foreign(socket: &mut Socket) -> Result<Foreign, NftError> {
    let mut tables = Foreign::new();
    for (family, _) in TABLE_FAMILIES {
        for (name, roots) in roots(socket, family)? {
            let mut ahead: BTreeSet<String> = roots.marking;
            ahead.extend(roots.bases.keys().cloned());
            let chains = chains(socket, &name, ahead)?;
            let bases = roots.bases;
            tables.insert(name, ForeignTable { bases, chains });
        }
    }
    Ok(tables)
}

/// Where reading begins in a table.
#[derive(Default)]
struct Roots {
    bases: BTreeMap<String, Base>,
    marking: BTreeSet<String>,
}

fn roots(socket: &mut Socket, family: u8) -> Result<BTreeMap<TableName, Roots>, NftError> {
    let request = Writer::of_family(family);
    socket.dump(
        libc::NFT_MSG_GETCHAIN,
        &request,
        |tables: &mut BTreeMap<TableName, Roots>, attrs| {
            let Some(name) = attrs.text(NFTA_CHAIN_NAME) else {
                return;
            };
            if let Some((table, base)) = base(family, attrs) {
                tables
                    .entry(table)
                    .or_default()
                    .bases
                    .insert(name.to_owned(), base);
            } else if MARKING.contains(&name)
                && let Some(table) = table_name(family, attrs)
            {
                tables.entry(table).or_default().marking.insert(name.to_owned());
            }
        },
    )
}

fn table_name(family: u8, attrs: Attrs<'_>) -> Option<TableName> {
    let name = attrs.text(NFTA_CHAIN_TABLE)?.to_owned();
    Some(TableName { family, name })
}

/// The base chain that these attributes are of, if it is another program's and packets of pods may meet it.
pub(super) fn base(family: u8, attrs: Attrs<'_>) -> Option<(TableName, Base)> {
    let hook = attrs.nested(NFTA_CHAIN_HOOK);
    let base = Base {
        hook: hook_of(hook.u32(NFTA_HOOK_HOOKNUM)?)?,
        nat: attrs.text(NFTA_CHAIN_TYPE) == Some("nat"),
        priority: hook.u32(NFTA_HOOK_PRIORITY)? as i32,
        drops: attrs.u32(NFTA_CHAIN_POLICY) == Some(libc::NF_DROP as u32),
    };
    let table = table_name(family, attrs)?;
    let sees_ip = TABLE_FAMILIES.iter().any(|(number, _)| *number == family);
    (sees_ip && !table.is_ours()).then_some((table, base))
}

/// The chains ahead, and all that packets may go to from them.
fn chains(
    socket: &mut Socket,
    table: &TableName,
    mut ahead: BTreeSet<String>,
) -> Result<BTreeMap<String, Vec<ForeignRule>>, NftError> {
    let mut chains = BTreeMap::new();
    while let Some(chain) = ahead.pop_first() {
        if let Entry::Vacant(place) = chains.entry(chain) {
            let rules = rules(socket, table, place.key())?;
            let targets = rules.iter().filter_map(ForeignRule::target);
            ahead.extend(targets.filter(|chain| !table.leaves_out(chain)).cloned());
            place.insert(rules);
        }
    }
    Ok(chains)
}

fn rules(socket: &mut Socket, table: &TableName, chain: &str) -> Result<Vec<ForeignRule>, NftError> {
    let request = Writer::of_family(table.family)
        .text(NFTA_RULE_TABLE, &table.name)
        .text(NFTA_RULE_CHAIN, chain);
    let read = socket.dump(libc::NFT_MSG_GETRULE, &request, |rules: &mut Vec<_>, attrs| {
        let asked =
            attrs.text(NFTA_RULE_TABLE) == Some(&table.name) && attrs.text(NFTA_RULE_CHAIN) == Some(chain);
        if asked {
            rules.push(read_rule(attrs.nested(NFTA_RULE_EXPRESSIONS)));
        }
    })?;
    let mut rules = Vec::with_capacity(read.len());
    for mut rule in read {
        let mut verdicts = None;
        for Pending { set, held, of } in std::mem::take(&mut rule.pending) {
            let elements = raw_elements(socket, table, &set)?;
            // Of an interval the kernel shows where it begins and where it has ended.
            let exact = !elements.iter().any(|element| element.end);
            match of {
                Some((at, is)) if exact => {
                    rule.resolve(at, &held, is, elements.into_iter().map(|e| e.key).collect());
                }
                Some(_) => {}
                None => {
                    let of_key =
                        |key: Option<_>| key.filter(|_| exact).map_or(Match::Perhaps, |k| held.is(&k));
                    verdicts = Some(elements.into_iter().map(|e| (of_key(e.key), e.data)).collect());
                }
            }
        }
        match verdicts {
            Some(verdicts) => rules.extend(rule.spread(verdicts)),
            None => rules.push(rule),
        }
    }
    Ok(rules)
}
