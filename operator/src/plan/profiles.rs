//! Profiles: overlapping destinations, exclusions and priorities, flattened into disjoint intervals.
//!
//! A packet belongs to the first policy, in order of precedence, among those that select its pod and whose
//! destinations, less its own exclusions, contain the packet's destination. The kernel answers that with one
//! lookup, since the planner has laid all policies of a pod side by side before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::interval::{Interval, next, previous};
use egressnat_crds::plan::{Destination, MAX_POLICY_ID};

use super::policies::{InForce, Slot};
use crate::hash::fnv1a;
use crate::ranges;

/// The destinations of policies laid side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Disjoint intervals in ascending order, each with the layer that it belongs to.
    flat: Vec<(Interval, usize)>,
    /// The layers that are left with a destination.
    left: BTreeSet<usize>,
}

/// The destinations of all pods that use the same slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat {
    /// The slots that the pods use, as indexes in order of precedence.
    pub used: Vec<usize>,
    /// Those of them that are left with a destination.
    pub slots: Vec<usize>,
    /// Their ids.
    pub ids: Vec<u16>,
    /// Disjoint intervals in ascending order.
    pub destinations: Vec<Destination>,
}

impl Layers {
    /// Lays the policies at `indexes`, in order of precedence, side by side.
    pub fn of(indexes: &[usize], policies: &[InForce]) -> Self {
        let layers: Vec<&[Interval]> = indexes
            .iter()
            .map(|i| policies[*i].spec.destinations.as_slice())
            .collect();
        let flat = flatten(&layers);
        let left = flat.iter().map(|(_, layer)| *layer).collect();
        Self { flat, left }
    }

    /// What of the destinations belongs to each layer, as [`ranges::merge`] gives it.
    pub fn by_layer(&self) -> BTreeMap<usize, Vec<Interval>> {
        let mut by_layer: BTreeMap<usize, Vec<Interval>> = BTreeMap::new();
        for (interval, layer) in &self.flat {
            by_layer.entry(*layer).or_default().push(*interval);
        }
        by_layer
    }

    /// With the slots at `indexes`, one for each policy.
    pub fn with(&self, indexes: &[usize], slots: &[Slot]) -> Flat {
        let id = |layer: usize| slots[indexes[layer]].id;
        Flat {
            used: indexes.to_vec(),
            slots: self.left.iter().map(|layer| indexes[*layer]).collect(),
            ids: self.left.iter().map(|layer| id(*layer)).collect(),
            destinations: self
                .flat
                .iter()
                .map(|(range, layer)| Destination {
                    range: *range,
                    policy: id(*layer),
                })
                .collect(),
        }
    }
}

/// Numbers for profiles, each known by its list of ids: a policy that is shadowed as a whole changes nothing
/// in the intervals, so equal lists mean equal profiles.
///
/// A number follows from the list alone, so that a change elsewhere does not renumber a node's pods: that of
/// a single policy is the policy's id, others start above all ids.
pub fn numbers<'a>(lists: impl IntoIterator<Item = &'a [u16]>) -> BTreeMap<&'a [u16], u32> {
    let lists: BTreeSet<&[u16]> = lists.into_iter().collect();
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    let mut numbers = BTreeMap::new();
    for list in lists {
        let mut number = match list {
            [one] => u32::from(*one),
            several => hashed(several),
        };
        while !taken.insert(number) {
            number += 1;
        }
        numbers.insert(list, number);
    }
    numbers
}

/// A number above all policy ids, with room to count on.
fn hashed(list: &[u16]) -> u32 {
    const BASE: u32 = MAX_POLICY_ID as u32 + 1;
    let hash = fnv1a(list.iter().flat_map(|id| id.to_be_bytes()));
    BASE + (hash % (1 << 30)) as u32
}

/// For each address in any layer, the first layer that has it; neighbours of one layer joined. Every layer
/// must be as [`ranges::merge`] gives it.
///
/// A sweep over the intervals' ends: O(n log n) in the number of intervals of all layers.
fn flatten(layers: &[&[Interval]]) -> Vec<(Interval, usize)> {
    let (v4, v6) = (
        |i: &&Interval| i.first().is_ipv4(),
        |i: &&Interval| i.first().is_ipv6(),
    );
    let mut flat = sweep(layers.iter().map(|l| l.iter().filter(v4)));
    flat.extend(sweep(layers.iter().map(|l| l.iter().filter(v6))));
    flat
}

/// [`flatten`] for the intervals of one family.
fn sweep<'a, L>(layers: impl Iterator<Item = L>) -> Vec<(Interval, usize)>
where
    L: Iterator<Item = &'a Interval>,
{
    let mut ends: Vec<(IpAddr, End, usize)> = Vec::new();
    let mut top = None;
    for (layer, intervals) in layers.enumerate() {
        for interval in intervals {
            top = top.max(Some(interval.last()));
            ends.push((interval.first(), End::Starts, layer));
            if let Some(after) = next(interval.last()) {
                ends.push((after, End::Stopped, layer));
            }
        }
    }
    ends.sort_unstable();
    let mut flat = Flattened::default();
    let mut open: BTreeSet<usize> = BTreeSet::new();
    let mut at: Option<IpAddr> = None;
    for (address, end, layer) in ends {
        if let (Some(from), Some(to), Some(first)) = (at, previous(address), open.first())
            && from <= to
        {
            flat.push(ranges::join(from, to), *first);
        }
        match end {
            End::Starts => open.insert(layer),
            End::Stopped => open.remove(&layer),
        };
        at = Some(address);
    }
    // What is still open reaches the family's last address, after which nothing can stop.
    if let (Some(from), Some(to), Some(first)) = (at, top, open.first()) {
        flat.push(ranges::join(from, to), *first);
    }
    flat.0
}

/// An end of an interval. Those of one layer never meet, since its intervals do not touch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Stopped,
    Starts,
}

#[derive(Default)]
struct Flattened(Vec<(Interval, usize)>);

impl Flattened {
    fn push(&mut self, interval: Interval, layer: usize) {
        match self.0.last_mut() {
            Some((last, l)) if *l == layer && next(last.last()) == Some(interval.first()) => {
                *last = ranges::join(last.first(), interval.last());
            }
            _ => self.0.push((interval, layer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer(texts: &[&str]) -> Vec<Interval> {
        ranges::merge(texts.iter().map(|t| t.parse().unwrap()))
    }

    fn flat(layers: &[Vec<Interval>]) -> Vec<String> {
        let layers: Vec<&[Interval]> = layers.iter().map(Vec::as_slice).collect();
        let flat = flatten(&layers);
        flat.iter().map(|(i, l)| format!("{i} {l}")).collect()
    }

    #[test]
    fn the_first_layer_wins_and_the_next_shows_around_it() {
        let layers = [
            layer(&["10.1.0.0-10.1.255.255", "2001:db8:1::-2001:db8:1::ff"]),
            layer(&["10.0.0.0-10.255.255.255", "2001:db8:1::80-2001:db8:1::1ff"]),
        ];
        assert_eq!(
            flat(&layers),
            [
                "10.0.0.0-10.0.255.255 1",
                "10.1.0.0-10.1.255.255 0",
                "10.2.0.0-10.255.255.255 1",
                "2001:db8:1::-2001:db8:1::ff 0",
                "2001:db8:1::100-2001:db8:1::1ff 1",
            ]
        );
    }

    #[test]
    fn layers_that_reach_the_last_address_are_closed_there() {
        let layers = [layer(&["128.0.0.0-255.255.255.255"]), ranges::everything()];
        assert_eq!(
            flat(&layers),
            [
                "0.0.0.0-127.255.255.255 1",
                "128.0.0.0-255.255.255.255 0",
                "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 1",
            ]
        );
    }

    #[test]
    fn a_number_follows_from_the_list_alone() {
        let (one, two, three): (&[u16], &[u16], &[u16]) = (&[7], &[7, 9], &[9, 7]);
        let few = numbers([two]);
        let many = numbers([one, two, three]);
        assert_eq!(few[two], many[two]);
        assert_eq!(many[one], 7);
        let distinct: BTreeSet<&u32> = many.values().collect();
        assert_eq!(distinct.len(), 3);
    }

    /// Addresses of a small world at both ends of both families.
    fn small_world() -> Vec<IpAddr> {
        let v4 = (0..8u32)
            .chain(u32::MAX - 7..=u32::MAX)
            .map(|a| IpAddr::V4(a.into()));
        let v6 = (0..8u128)
            .chain(u128::MAX - 7..=u128::MAX)
            .map(|a| IpAddr::V6(a.into()));
        v4.chain(v6).collect()
    }

    fn layers() -> impl Strategy<Value = Vec<Vec<Interval>>> {
        let one = (0usize..32, 0usize..32).prop_filter_map("one family", |(a, b)| {
            let all = small_world();
            Interval::new(all[a.min(b)], all[a.max(b)]).ok()
        });
        let layer = proptest::collection::vec(one, 0..5).prop_map(ranges::merge);
        proptest::collection::vec(layer, 0..6)
    }

    proptest! {
        #[test]
        fn flattening_is_the_first_layer_of_each_address(layers in layers()) {
            let slices: Vec<&[Interval]> = layers.iter().map(Vec::as_slice).collect();
            let flat = flatten(&slices);
            for address in small_world() {
                let naive = layers.iter().position(|l| l.iter().any(|i| i.contains(address)));
                let swept = flat.iter().find(|(i, _)| i.contains(address)).map(|(_, l)| *l);
                prop_assert_eq!(naive, swept, "{}", address);
            }
        }

        #[test]
        fn flattening_is_sorted_disjoint_and_as_short_as_can_be(layers in layers()) {
            let slices: Vec<&[Interval]> = layers.iter().map(Vec::as_slice).collect();
            for pair in flatten(&slices).windows(2) {
                let ((left, l), (right, r)) = (pair[0], pair[1]);
                prop_assert!(left.last() < right.first());
                prop_assert!(l != r || next(left.last()) != Some(right.first()));
            }
        }
    }
}
