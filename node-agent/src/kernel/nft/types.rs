//! The model's types as the kernel numbers them.

use crate::diff::SetType;
use crate::model::{DataType, Hook, KeyType};

/// nft's number of `verdict` as a data type (`NFT_DATA_VERDICT`), and the length of the kernel's structure.
const VERDICT: (u32, u32) = (0xffff_ff00, 16);

/// nft's numbers of the type of the keys, with their length.
pub fn key_type(key: KeyType) -> (u32, u32) {
    match key {
        KeyType::Ipv4Addr => (7, 4),
        KeyType::Ipv6Addr => (8, 16),
        KeyType::EtherAddr => (9, 6),
        KeyType::Mark => (19, 4),
        KeyType::Link => (20, 4),
    }
}

/// The same of the data.
pub fn data_type(data: DataType) -> Option<(u32, u32)> {
    match data {
        DataType::None => None,
        DataType::Mark => Some(key_type(KeyType::Mark)),
        DataType::Ipv4Addr => Some(key_type(KeyType::Ipv4Addr)),
        DataType::Ipv6Addr => Some(key_type(KeyType::Ipv6Addr)),
        DataType::Verdict => Some(VERDICT),
    }
}

/// The byte orders of keys and data, without which `nft` shows marks in a map the wrong way round: user data of
/// a set, entries of type, length and value.
pub fn byte_orders(set: SetType) -> Vec<u8> {
    const KEY: u8 = nftnl_sys::NFTNL_UDATA_SET_KEYBYTEORDER as u8;
    const DATA: u8 = nftnl_sys::NFTNL_UDATA_SET_DATABYTEORDER as u8;
    const HOST: u32 = 1;
    const NETWORK: u32 = 2;
    let entry = |ty: u8, order: u32| [&[ty, 4][..], &order.to_ne_bytes()].concat();
    let key = match set.key {
        KeyType::Mark | KeyType::Link => HOST,
        KeyType::Ipv4Addr | KeyType::Ipv6Addr | KeyType::EtherAddr => NETWORK,
    };
    let data = match set.data {
        // A verdict has no octets to order: told to turn them, `nft` aborts.
        DataType::None | DataType::Verdict => None,
        DataType::Mark => Some(HOST),
        DataType::Ipv4Addr | DataType::Ipv6Addr => Some(NETWORK),
    };
    let mut entries = entry(KEY, key);
    entries.extend(data.into_iter().flat_map(|order| entry(DATA, order)));
    entries
}

/// `NF_INET_*`.
pub fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

/// The hook of this `NF_INET_*`; `None` for those of other kinds of tables.
pub fn hook_of(number: u32) -> Option<Hook> {
    let hooks = [
        Hook::Prerouting,
        Hook::Input,
        Hook::Forward,
        Hook::Output,
        Hook::Postrouting,
    ];
    hooks.into_iter().find(|hook| hook_number(*hook) == number)
}
