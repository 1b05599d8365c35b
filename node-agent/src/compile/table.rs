//! Small verbs to write a ruleset with.

use egressnat_crds::plan::Family;

use crate::model::rule::Masked;
use crate::model::{
    BaseChain, Chain, ChainKind, Cmp, Data, DataType, ElementKey, Hook, Key, KeyType, Link, Rule, Ruleset,
    Set, Statement, Verdict,
};
use crate::owned::{self, CT_MARK_MASK, CT_MARK_SHIFT, Drop};

impl Ruleset {
    /// Hangs a base chain on `hook`.
    pub(super) fn base(&mut self, name: &str, kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) {
        let base = Some(BaseChain { kind, hook, priority });
        self.chains.insert(name.into(), Chain { base, rules });
    }

    /// Adds a chain that others go to.
    pub(super) fn chain(&mut self, name: impl Into<String>, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { base: None, rules });
    }

    /// Adds a set or map of single values.
    pub(super) fn hash(
        &mut self,
        name: impl Into<String>,
        key: KeyType,
        data: DataType,
        elements: impl IntoIterator<Item = (ElementKey, Data)>,
    ) {
        self.add_set(name.into(), key, data, false, elements);
    }

    /// Adds a set or map of intervals.
    pub(super) fn intervals(
        &mut self,
        name: impl Into<String>,
        key: KeyType,
        data: DataType,
        elements: impl IntoIterator<Item = (ElementKey, Data)>,
    ) {
        self.add_set(name.into(), key, data, true, elements);
    }

    fn add_set(
        &mut self,
        name: String,
        key: KeyType,
        data: DataType,
        interval: bool,
        elements: impl IntoIterator<Item = (ElementKey, Data)>,
    ) {
        let elements = elements.into_iter().collect();
        self.sets.insert(
            name,
            Set {
                key,
                data,
                interval,
                elements,
            },
        );
    }
}

/// A rule of these statements.
pub(super) fn rule<const N: usize>(statements: [Statement; N]) -> Rule {
    Rule(statements.into())
}

pub(super) fn accept() -> Statement {
    Statement::Verdict(Verdict::Accept)
}

pub(super) fn goto(chain: impl Into<String>) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

pub(super) fn jump(chain: impl Into<String>) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

/// An element's verdict.
pub(super) fn goto_data(chain: impl Into<String>) -> Data {
    Data::Verdict(Verdict::Goto(chain.into()))
}

/// Count the reason and drop.
pub(super) fn drop(reason: Drop) -> [Statement; 2] {
    [
        Statement::Counter(reason.counter().into()),
        Statement::Verdict(Verdict::Drop),
    ]
}

/// A rule that drops what reaches it.
pub(super) fn drop_rule(reason: Drop) -> Rule {
    Rule(drop(reason).into())
}

/// A rule that drops what matches.
pub(super) fn drop_if<const N: usize>(matches: [Statement; N], reason: Drop) -> Rule {
    Rule(matches.into_iter().chain(drop(reason)).collect())
}

pub(super) fn iif(link: &Link) -> Statement {
    Statement::Iif(link.clone())
}

pub(super) fn oif(link: &Link) -> Statement {
    Statement::Oif(link.clone())
}

/// The connection carries a policy's id.
pub(super) fn has_id() -> Statement {
    ct_mark(Cmp::Ne, 0)
}

/// The connection's id compared.
pub(super) fn ct_mark(cmp: Cmp, value: u32) -> Statement {
    Statement::CtMark(Masked {
        mask: CT_MARK_MASK,
        cmp,
        value,
    })
}

/// Saves a policy's id in the connection.
pub(super) fn save_id(id: u16) -> Statement {
    Statement::SetCtMark {
        keep: !CT_MARK_MASK,
        bits: owned::ct_mark(id),
    }
}

/// The connection's id as a key.
pub(super) fn id_key() -> Key {
    Key::CtMark(CT_MARK_MASK)
}

/// The connection's id as the packet's mark, for the tunnel's header.
pub(super) fn id_to_wire() -> Statement {
    Statement::MetaMarkFromCtMark {
        mask: CT_MARK_MASK,
        shift: CT_MARK_SHIFT,
    }
}

/// The types of a family's addresses.
pub(super) fn address_type(family: Family) -> (KeyType, DataType) {
    match family {
        Family::IPv4 => (KeyType::Ipv4Addr, DataType::Ipv4Addr),
        Family::IPv6 => (KeyType::Ipv6Addr, DataType::Ipv6Addr),
    }
}
