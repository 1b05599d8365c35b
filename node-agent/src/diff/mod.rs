//! What has to change: `desired` and `observed` in, ordered steps out. Pure.

pub mod flows;
pub mod net;
pub mod nft;
pub mod pods;
pub mod touched;
pub mod translation;

pub use net::{NetChanges, NetObject, NetStep};
pub use nft::{NftStep, ObservedChain, ObservedTable, SetType};
pub use touched::Touched;

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The entries of two maps in the order of their keys, with what each map has there. Walks both once: there are
/// tens of thousands of elements, of which a change mostly touches one.
fn side_by_side<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some((was, _)), Some((is, _))) => was.cmp(is),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let was = old.next_if(|_| order.is_le());
        let is = new.next_if(|_| order.is_ge());
        let (key, _) = was.or(is)?;
        Some((key, was.map(|(_, data)| data), is.map(|(_, data)| data)))
    })
}

#[cfg(test)]
mod tests;
