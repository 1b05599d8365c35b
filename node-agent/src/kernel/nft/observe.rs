//! What the kernel holds of the table, read back.
//!
//! Others may have changed the table, where the kernel cannot keep them from it. What they put there that the
//! model has no words for is shown as something that nothing wants, so that a diff removes or replaces it.

use std::collections::{BTreeMap, BTreeSet};

use super::attr::{Attrs, Writer};
use super::elements::{self, RawData, RawElement};
use super::error::NftError;
use super::foreign::TableName;
use super::socket::Socket;
use super::types::{data_type, hook_of, key_type};
use super::value::Value;
use crate::diff::{ObservedChain, ObservedTable, SetType};
use crate::model::{BaseChain, ChainKind, Data, DataType, ElementKey, Hook, KeyType, Set, Verdict};
use crate::owned;

/// A table's flags and its owner's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// `NFT_TABLE_F_*`.
    pub flags: u32,
    /// Netlink port of the owner, where it has one.
    pub owner: Option<u32>,
}

// linux/netfilter/nf_tables.h
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_OWNER: u16 = 7;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_GEN_ID: u16 = 1;
const NFT_OBJECT_COUNTER: u32 = 1;

/// A set that the model has no words for: we make no intervals of marks.
const FOREIGN_SET: SetType = SetType {
    key: KeyType::Mark,
    data: DataType::None,
    interval: true,
};

/// A base chain that the model has no words for (type `route`, policy `drop`): none of ours has this priority.
const FOREIGN_BASE: BaseChain = BaseChain {
    kind: ChainKind::Filter,
    hook: Hook::Input,
    priority: i32::MIN,
};

/// Number of the last change of any table in the network namespace.
pub fn generation(socket: &mut Socket) -> Result<u32, NftError> {
    let read = |attrs: Attrs<'_>| attrs.u32(NFTA_GEN_ID);
    socket
        .get(libc::NFT_MSG_GETGEN, &Writer::default(), read)?
        .ok_or(NftError::Malformed("no generation"))
}

/// Flags and owner of the table; `None` where there is no table.
pub fn table_info(socket: &mut Socket) -> Result<Option<TableInfo>, NftError> {
    let request = Writer::default().text(NFTA_TABLE_NAME, owned::TABLE);
    socket.get(libc::NFT_MSG_GETTABLE, &request, |attrs| {
        Some(TableInfo {
            flags: attrs.u32(NFTA_TABLE_FLAGS)?,
            owner: attrs.u32(NFTA_TABLE_OWNER),
        })
    })
}

/// The data type of a set; `None` where there is no such set.
pub fn set_data_type(socket: &mut Socket, name: &str) -> Result<Option<DataType>, NftError> {
    let request = Writer::default()
        .text(NFTA_SET_TABLE, owned::TABLE)
        .text(NFTA_SET_NAME, name);
    socket.get(libc::NFT_MSG_GETSET, &request, |attrs| {
        Some(set_type(attrs).unwrap_or(FOREIGN_SET).data)
    })
}

/// The whole table. The caller has seen that it is there.
pub fn table(socket: &mut Socket) -> Result<ObservedTable, NftError> {
    let mut sets = BTreeMap::new();
    for (name, ty) in set_types(socket)? {
        let elements = elements(socket, &name, ty)?;
        let SetType { key, data, interval } = ty;
        let set = Set {
            key,
            data,
            interval,
            elements,
        };
        sets.insert(name, set);
    }
    Ok(ObservedTable {
        counters: counters(socket)?,
        sets,
        chains: chains(socket)?,
    })
}

/// The named counters: packets and octets. None where there is no table.
pub fn counters(socket: &mut Socket) -> Result<BTreeMap<String, (u64, u64)>, NftError> {
    let request = Writer::default()
        .text(NFTA_OBJ_TABLE, owned::TABLE)
        .u32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    socket.dump(libc::NFT_MSG_GETOBJ, &request, |counters, attrs| {
        let data = attrs.nested(NFTA_OBJ_DATA);
        let ours = attrs.text(NFTA_OBJ_TABLE) == Some(owned::TABLE)
            && attrs.u32(NFTA_OBJ_TYPE) == Some(NFT_OBJECT_COUNTER);
        if let (true, Some(name)) = (ours, attrs.text(NFTA_OBJ_NAME)) {
            let packets = data.u64(NFTA_COUNTER_PACKETS).unwrap_or_default();
            let octets = data.u64(NFTA_COUNTER_BYTES).unwrap_or_default();
            BTreeMap::insert(counters, name.to_owned(), (packets, octets));
        }
    })
}

fn set_types(socket: &mut Socket) -> Result<BTreeMap<String, SetType>, NftError> {
    let request = Writer::default().text(NFTA_SET_TABLE, owned::TABLE);
    socket.dump(libc::NFT_MSG_GETSET, &request, |sets, attrs| {
        let flags = attrs.u32(NFTA_SET_FLAGS).unwrap_or_default();
        // One without a name belongs to a rule, and goes with it.
        let ours =
            attrs.text(NFTA_SET_TABLE) == Some(owned::TABLE) && flags & libc::NFT_SET_ANONYMOUS as u32 == 0;
        if let (true, Some(name)) = (ours, attrs.text(NFTA_SET_NAME)) {
            BTreeMap::insert(sets, name.to_owned(), set_type(attrs).unwrap_or(FOREIGN_SET));
        }
    })
}

/// The types of a set, `None` where the model has no words for them.
fn set_type(attrs: Attrs<'_>) -> Option<SetType> {
    let flags = attrs.u32(NFTA_SET_FLAGS).unwrap_or_default();
    let (interval, map) = (libc::NFT_SET_INTERVAL as u32, libc::NFT_SET_MAP as u32);
    if flags & !(interval | map) != 0 {
        return None;
    }
    let key = (attrs.u32(NFTA_SET_KEY_TYPE)?, attrs.u32(NFTA_SET_KEY_LEN)?);
    let key = [
        KeyType::Ipv4Addr,
        KeyType::Ipv6Addr,
        KeyType::EtherAddr,
        KeyType::Mark,
        KeyType::Link,
    ]
    .into_iter()
    .find(|ty| key_type(*ty) == key)?;
    let data = match flags & map {
        0 => DataType::None,
        _ => {
            let number = attrs.u32(NFTA_SET_DATA_TYPE)?;
            [
                DataType::Mark,
                DataType::Verdict,
                DataType::Ipv4Addr,
                DataType::Ipv6Addr,
            ]
            .into_iter()
            .find(|ty| data_type(*ty).is_some_and(|(n, _)| n == number))?
        }
    };
    let interval = flags & interval != 0;
    Some(SetType { key, data, interval })
}

/// While the kernel enlarges a hash table, which it does some time after many elements came, its list of the
/// elements has some twice and leaves out others.
fn elements(socket: &mut Socket, set: &str, ty: SetType) -> Result<BTreeMap<ElementKey, Data>, NftError> {
    const ATTEMPTS: usize = 20;
    let request = Writer::default()
        .text(NFTA_SET_ELEM_LIST_TABLE, owned::TABLE)
        .text(NFTA_SET_ELEM_LIST_SET, set);
    for _ in 0..ATTEMPTS {
        let raw = socket.dump(libc::NFT_MSG_GETSETELEM, &request, |raw: &mut Vec<_>, attrs| {
            let list = attrs.nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            raw.extend(list.iter().filter_map(|(_, element)| raw_element(Attrs(element))));
        })?;
        let distinct: BTreeSet<_> = raw.iter().map(|e| (e.key, e.end)).collect();
        if distinct.len() == raw.len() {
            return Ok(elements::decode(ty, raw));
        }
    }
    Err(NftError::Interrupted)
}

/// An element of another program's set or map.
pub(super) struct ForeignElement {
    /// Its key, where a register holds it.
    pub key: Option<Value>,
    /// An interval ends before the key.
    pub end: bool,
    /// What a map has for the key.
    pub data: RawData,
}

/// The elements of another program's set or map.
pub(super) fn raw_elements(
    socket: &mut Socket,
    table: &TableName,
    set: &str,
) -> Result<Vec<ForeignElement>, NftError> {
    let request = Writer::of_family(table.family)
        .text(NFTA_SET_ELEM_LIST_TABLE, &table.name)
        .text(NFTA_SET_ELEM_LIST_SET, set);
    let element = |attrs: Attrs<'_>| {
        let key = attrs.nested(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE);
        let flags = attrs.u32(NFTA_SET_ELEM_FLAGS).unwrap_or_default();
        ForeignElement {
            key: key.and_then(Value::from_slice),
            end: flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 != 0,
            data: raw_data(attrs.nested(NFTA_SET_ELEM_DATA)).unwrap_or(RawData::None),
        }
    };
    socket.dump(
        libc::NFT_MSG_GETSETELEM,
        &request,
        |elements: &mut Vec<_>, attrs| {
            let list = attrs.nested(NFTA_SET_ELEM_LIST_ELEMENTS);
            elements.extend(list.iter().map(|(_, attrs)| element(Attrs(attrs))));
        },
    )
}

fn raw_element(attrs: Attrs<'_>) -> Option<RawElement> {
    let flags = attrs.u32(NFTA_SET_ELEM_FLAGS).unwrap_or_default();
    Some(RawElement {
        key: Value::from_slice(attrs.nested(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE)?)?,
        end: flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 != 0,
        data: raw_data(attrs.nested(NFTA_SET_ELEM_DATA)).unwrap_or(RawData::None),
    })
}

fn raw_data(attrs: Attrs<'_>) -> Option<RawData> {
    if let Some(value) = attrs.get(NFTA_DATA_VALUE) {
        return Value::from_slice(value).map(RawData::Value);
    }
    let verdict = attrs.nested(NFTA_DATA_VERDICT);
    let chain = || verdict.text(NFTA_VERDICT_CHAIN).map(str::to_owned);
    let verdict = match verdict.u32(NFTA_VERDICT_CODE)? as i32 {
        libc::NF_DROP => Verdict::Drop,
        libc::NF_ACCEPT => Verdict::Accept,
        libc::NFT_RETURN => Verdict::Return,
        libc::NFT_JUMP => Verdict::Jump(chain()?),
        libc::NFT_GOTO => Verdict::Goto(chain()?),
        _ => return None,
    };
    Some(RawData::Verdict(verdict))
}

fn chains(socket: &mut Socket) -> Result<BTreeMap<String, ObservedChain>, NftError> {
    let of_table = |attrs: Attrs<'_>| attrs.text(NFTA_CHAIN_TABLE) == Some(owned::TABLE);
    let mut chains: BTreeMap<String, ObservedChain> =
        socket.dump(libc::NFT_MSG_GETCHAIN, &Writer::default(), |chains, attrs| {
            if let (true, Some(name)) = (of_table(attrs), attrs.text(NFTA_CHAIN_NAME)) {
                let chain = ObservedChain {
                    base: base_chain(attrs),
                    tags: Vec::new(),
                };
                BTreeMap::insert(chains, name.to_owned(), chain);
            }
        })?;
    let request = Writer::default().text(NFTA_RULE_TABLE, owned::TABLE);
    let rules: Vec<(String, String)> =
        socket.dump(libc::NFT_MSG_GETRULE, &request, |rules: &mut Vec<_>, attrs| {
            let ours = attrs.text(NFTA_RULE_TABLE) == Some(owned::TABLE);
            if let (true, Some(chain)) = (ours, attrs.text(NFTA_RULE_CHAIN)) {
                rules.push((chain.to_owned(), tag(attrs).unwrap_or_default().to_owned()));
            }
        })?;
    for (chain, tag) in rules {
        chains.entry(chain).or_default().tags.push(tag);
    }
    Ok(chains)
}

fn base_chain(attrs: Attrs<'_>) -> Option<BaseChain> {
    attrs.get(NFTA_CHAIN_HOOK)?;
    let known = || {
        let hook = attrs.nested(NFTA_CHAIN_HOOK);
        let kind = match attrs.text(NFTA_CHAIN_TYPE)? {
            "filter" => ChainKind::Filter,
            "nat" => ChainKind::Nat,
            _ => return None,
        };
        (attrs.u32(NFTA_CHAIN_POLICY)? == libc::NF_ACCEPT as u32).then_some(BaseChain {
            kind,
            hook: hook_of(hook.u32(NFTA_HOOK_HOOKNUM)?)?,
            priority: hook.u32(NFTA_HOOK_PRIORITY)? as i32,
        })
    };
    Some(known().unwrap_or(FOREIGN_BASE))
}

/// The comment in a rule's user data: entries of type, length and value.
fn tag(attrs: Attrs<'_>) -> Option<&str> {
    const COMMENT: u8 = 0;
    let mut rest = attrs.get(NFTA_RULE_USERDATA)?;
    loop {
        let [kind, length, ..] = *rest else { return None };
        let value = rest.get(2..2 + usize::from(length))?;
        if kind == COMMENT {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        rest = &rest[2 + usize::from(length)..];
    }
}
