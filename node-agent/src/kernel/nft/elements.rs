//! Elements of sets and maps to what the kernel keeps, and back.
//!
//! The kernel has no ranges in its sets, only marks on the number line: an element where an interval starts,
//! with the data, and one flagged `INTERVAL_END` at the first value *after* it. An interval up to the
//! family's last address has no value after it, and so no end. The order in which the kernel lists them is
//! its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egressnat_crds::interval::{self, Interval};

use super::value::Value;
use crate::diff::SetType;
use crate::model::{Data, DataType, ElementKey, KeyType, Verdict};

/// One element as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawElement {
    /// The key.
    pub key: Value,
    /// An interval ends before the key.
    pub end: bool,
    /// What a map has for the key; sets and ends have nothing.
    pub data: RawData,
}

/// Data of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawData {
    /// None.
    None,
    /// A mark or an address.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

/// Whether the kernel's elements of this type can be told apart: only addresses come in intervals.
pub fn is_supported(set: SetType) -> bool {
    !set.interval || matches!(set.key, KeyType::Ipv4Addr | KeyType::Ipv6Addr)
}

/// The element as one or, for an interval, one or two of the kernel's. Without data, as deleting wants it,
/// unless `with_data`.
pub fn encode(
    set: SetType,
    key: &ElementKey,
    data: &Data,
    with_data: bool,
) -> Result<Vec<RawElement>, &'static str> {
    let data = encode_data(set.data, data)?;
    let data = if with_data { data } else { RawData::None };
    let element = |key, end, data| RawElement { key, end, data };
    if !set.interval {
        return Ok(vec![element(encode_key(set.key, key)?, false, data)]);
    }
    let ElementKey::Range(range) = key else {
        return Err("the key of an interval set must be an interval");
    };
    if range.first().is_ipv4() != (set.key == KeyType::Ipv4Addr) || !is_supported(set) {
        return Err("the interval is not of the set's type");
    }
    let mut elements = vec![element(range.first().into(), false, data)];
    elements.extend(interval::next(range.last()).map(|after| element(after.into(), true, RawData::None)));
    Ok(elements)
}

fn encode_key(ty: KeyType, key: &ElementKey) -> Result<Value, &'static str> {
    match (ty, *key) {
        (KeyType::Ipv4Addr, ElementKey::Addr(a @ IpAddr::V4(_))) => Ok(a.into()),
        (KeyType::Ipv6Addr, ElementKey::Addr(a @ IpAddr::V6(_))) => Ok(a.into()),
        (KeyType::EtherAddr, ElementKey::Mac(mac)) => Ok(mac.into()),
        (KeyType::Mark, ElementKey::Mark(mark)) => Ok(Value::host(mark)),
        (KeyType::Link, ElementKey::Link(index)) => Ok(Value::host(index)),
        _ => Err("the key is not of the set's type"),
    }
}

fn encode_data(ty: DataType, data: &Data) -> Result<RawData, &'static str> {
    match (ty, data) {
        (DataType::None, Data::None) => Ok(RawData::None),
        (DataType::Mark, Data::Mark(mark)) => Ok(RawData::Value(Value::host(*mark))),
        (DataType::Ipv4Addr, Data::Addr(a @ IpAddr::V4(_))) => Ok(RawData::Value((*a).into())),
        (DataType::Ipv6Addr, Data::Addr(a @ IpAddr::V6(_))) => Ok(RawData::Value((*a).into())),
        (DataType::Verdict, Data::Verdict(verdict)) => Ok(RawData::Verdict(verdict.clone())),
        _ => Err("the data is not of the map's type"),
    }
}

/// The elements of a set, in whatever order the kernel listed them. What no set of this type can have is left
/// out.
pub fn decode(set: SetType, raw: Vec<RawElement>) -> BTreeMap<ElementKey, Data> {
    if !is_supported(set) {
        return BTreeMap::new();
    }
    if set.interval {
        return decode_intervals(set, raw);
    }
    raw.into_iter()
        .filter_map(|e| Some((decode_key(set.key, e.key)?, decode_data(set.data, e.data)?)))
        .collect()
}

fn decode_key(ty: KeyType, key: Value) -> Option<ElementKey> {
    match ty {
        KeyType::Ipv4Addr => key.addr().filter(IpAddr::is_ipv4).map(ElementKey::Addr),
        KeyType::Ipv6Addr => key.addr().filter(IpAddr::is_ipv6).map(ElementKey::Addr),
        KeyType::EtherAddr => key.mac().map(ElementKey::Mac),
        KeyType::Mark => key.mark().map(ElementKey::Mark),
        KeyType::Link => key.mark().map(ElementKey::Link),
    }
}

fn decode_data(ty: DataType, data: RawData) -> Option<Data> {
    match (ty, data) {
        (DataType::None, _) => Some(Data::None),
        (DataType::Mark, RawData::Value(value)) => value.mark().map(Data::Mark),
        (DataType::Ipv4Addr, RawData::Value(value)) => value.addr().filter(IpAddr::is_ipv4).map(Data::Addr),
        (DataType::Ipv6Addr, RawData::Value(value)) => value.addr().filter(IpAddr::is_ipv6).map(Data::Addr),
        (DataType::Verdict, RawData::Verdict(verdict)) => Some(Data::Verdict(verdict)),
        _ => None,
    }
}

fn decode_intervals(set: SetType, mut raw: Vec<RawElement>) -> BTreeMap<ElementKey, Data> {
    let mut elements = BTreeMap::new();
    // Where one interval ends and the next starts, the end comes first.
    raw.sort_by_key(|e| (e.key, !e.end));
    let mut open: Option<(IpAddr, Data)> = None;
    let mut close = |open: Option<(IpAddr, Data)>, last: IpAddr| {
        let (first, data) = open?;
        elements.insert(ElementKey::Range(Interval::new(first, last).ok()?), data)
    };
    for element in raw {
        let Some(ElementKey::Addr(key)) = decode_key(set.key, element.key) else {
            continue;
        };
        // `nft` writes no end where the next interval starts at once, and an end at zero that ends nothing.
        if let Some(last) = interval::previous(key) {
            close(open.take(), last);
        }
        open = match element.end {
            true => None,
            false => decode_data(set.data, element.data).map(|data| (key, data)),
        };
    }
    close(open, last_address(set.key));
    elements
}

fn last_address(key: KeyType) -> IpAddr {
    match key {
        KeyType::Ipv6Addr => IpAddr::from([0xff; 16]),
        _ => IpAddr::from([0xff; 4]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: SetType = SetType {
        key: KeyType::Ipv4Addr,
        data: DataType::Mark,
        interval: true,
    };

    fn range(text: &str) -> ElementKey {
        ElementKey::Range(text.parse().unwrap())
    }

    fn raw(elements: &[(&str, u32)]) -> Vec<RawElement> {
        let encode = |(key, mark): &(&str, u32)| encode(MAP, &range(key), &Data::Mark(*mark), true).unwrap();
        elements.iter().flat_map(encode).collect()
    }

    #[test]
    fn an_interval_ends_where_the_next_address_starts() {
        let raw = raw(&[("10.0.0.0-10.0.0.255", 7)]);
        let addresses: Vec<_> = raw
            .iter()
            .map(|e| (e.key.addr().unwrap().to_string(), e.end))
            .collect();
        assert_eq!(addresses, [("10.0.0.0".into(), false), ("10.0.1.0".into(), true)]);
        assert_eq!(raw[1].data, RawData::None);
    }

    #[test]
    fn an_interval_up_to_the_last_address_has_no_end() {
        assert_eq!(raw(&[("240.0.0.0-255.255.255.255", 7)]).len(), 1);
    }

    #[test]
    fn intervals_are_put_together_from_any_order() {
        let all = [
            ("0.0.0.0-0.0.0.9", 1),
            ("0.0.0.10-0.0.0.10", 2),
            ("10.0.0.0-10.255.255.255", 3),
            ("255.255.255.255-255.255.255.255", 4),
        ];
        let mut elements = raw(&all);
        elements.reverse();
        let expected = all.iter().map(|(k, m)| (range(k), Data::Mark(*m))).collect();
        assert_eq!(decode(MAP, elements), expected);
    }

    #[test]
    fn intervals_as_nft_writes_them_are_understood() {
        // An end at zero, and no end between neighbours.
        let mut elements = raw(&[("10.0.0.0-10.0.0.9", 1), ("10.0.0.10-10.0.0.20", 2)]);
        elements.retain(|e| !(e.end && e.key == Value::new([10, 0, 0, 10])));
        elements.push(RawElement {
            key: Value::host(0),
            end: true,
            data: RawData::None,
        });
        let keys: Vec<_> = decode(MAP, elements).into_keys().collect();
        assert_eq!(keys, [range("10.0.0.0-10.0.0.9"), range("10.0.0.10-10.0.0.20")]);
    }

    #[test]
    fn what_is_not_of_the_type_is_refused() {
        let set = SetType {
            interval: false,
            ..MAP
        };
        let v6 = ElementKey::Addr("::1".parse().unwrap());
        let v4 = ElementKey::Addr("10.0.0.1".parse().unwrap());
        assert!(encode(set, &v6, &Data::Mark(1), true).is_err());
        assert!(encode(set, &v4, &Data::None, true).is_err());
        assert!(encode(MAP, &v4, &Data::Mark(1), true).is_err());
        assert!(encode(MAP, &range("::-::1"), &Data::Mark(1), true).is_err());
        assert!(encode(set, &v4, &Data::Mark(1), true).is_ok());
    }
}
