//! Sets of addresses as sorted, disjoint intervals.

use std::net::IpAddr;

use egressnat_crds::interval::{Interval, next, previous};

/// The union of `intervals`: sorted, IPv4 first, disjoint, neighbours joined. The shortest such list.
pub fn merge(intervals: impl IntoIterator<Item = Interval>) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = intervals.into_iter().collect();
    sorted.sort_unstable();
    let mut merged: Vec<Interval> = Vec::with_capacity(sorted.len());
    for interval in sorted {
        match merged.last_mut() {
            Some(last) if touches(*last, interval.first()) => {
                if interval.last() > last.last() {
                    *last = join(last.first(), interval.last());
                }
            }
            _ => merged.push(interval),
        }
    }
    merged
}

/// What of `from` is not in `holes`. Both must be as [`merge`] gives them, and so is the answer.
pub fn subtract(from: &[Interval], holes: &[Interval]) -> Vec<Interval> {
    let mut rest = Vec::with_capacity(from.len());
    let mut holes = holes.iter().peekable();
    for interval in from {
        let mut start = Some(interval.first());
        while holes.next_if(|h| h.last() < interval.first()).is_some() {}
        let mut ahead = holes.clone();
        while let (Some(first), Some(hole)) = (start, ahead.next()) {
            if hole.first() > interval.last() {
                break;
            }
            if hole.first() > first
                && let Some(end) = previous(hole.first())
            {
                rest.push(join(first, end));
            }
            start = next(hole.last()).filter(|s| *s <= interval.last());
        }
        if let Some(first) = start {
            rest.push(join(first, interval.last()));
        }
    }
    rest
}

/// What is in both. Both must be as [`merge`] gives them, and so is the answer.
pub fn intersect(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let mut both = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (first, last) = (x.first().max(y.first()), x.last().min(y.last()));
        if first <= last {
            both.push(join(first, last));
        }
        match x.last() < y.last() {
            true => i += 1,
            false => j += 1,
        }
    }
    both
}

/// Every address of both families.
pub fn everything() -> Vec<Interval> {
    ["0.0.0.0/0", "::/0"]
        .iter()
        .filter_map(|net| net.parse::<ipnet::IpNet>().ok())
        .map(Interval::from)
        .collect()
}

/// The interval of one address.
pub fn single(address: IpAddr) -> Interval {
    join(address, address)
}

/// The interval between two addresses that are known to be of one family and in order.
pub fn join(first: IpAddr, last: IpAddr) -> Interval {
    Interval::new(first, last).unwrap_or_else(|e| unreachable!("{e}"))
}

/// Whether an interval that starts at `start`, not below `left`, overlaps it or follows it without a gap.
fn touches(left: Interval, start: IpAddr) -> bool {
    left.contains(start) || next(left.last()) == Some(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(texts: &[&str]) -> Vec<Interval> {
        merge(texts.iter().map(|t| t.parse().unwrap()))
    }

    #[test]
    fn neighbours_are_joined_and_families_are_not() {
        assert_eq!(
            set(&["10.0.1.0-10.0.1.255", "10.0.0.0-10.0.0.255"]),
            set(&["10.0.0.0-10.0.1.255"])
        );
        assert_eq!(set(&["255.255.255.255-255.255.255.255", "::-::"]).len(), 2);
    }

    #[test]
    fn a_hole_at_an_end_of_the_family_leaves_the_rest() {
        let holes = set(&[
            "0.0.0.0-0.255.255.255",
            "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ]);
        assert_eq!(
            subtract(&merge(everything()), &holes),
            set(&[
                "1.0.0.0-255.255.255.255",
                "::-feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
            ])
        );
        assert_eq!(subtract(&everything(), &everything()), vec![]);
    }

    /// Addresses of a small world at both ends of both families, where every case meets.
    fn small_world() -> Vec<IpAddr> {
        let v4 = (0..8u32)
            .chain(u32::MAX - 7..=u32::MAX)
            .map(|a| IpAddr::V4(a.into()));
        let v6 = (0..8u128)
            .chain(u128::MAX - 7..=u128::MAX)
            .map(|a| IpAddr::V6(a.into()));
        v4.chain(v6).collect()
    }

    fn intervals() -> impl Strategy<Value = Vec<Interval>> {
        let one = (0usize..32, 0usize..32).prop_filter_map("one family", |(a, b)| {
            let all = small_world();
            Interval::new(all[a.min(b)], all[a.max(b)]).ok()
        });
        proptest::collection::vec(one, 0..6)
    }

    fn has(set: &[Interval], a: IpAddr) -> bool {
        set.iter().any(|i| i.contains(a))
    }

    proptest! {
        #[test]
        fn sets_hold_what_their_definition_says(a in intervals(), b in intervals()) {
            let (x, y) = (merge(a.clone()), merge(b.clone()));
            let rest = subtract(&x, &y);
            let both = intersect(&x, &y);
            for address in small_world() {
                prop_assert_eq!(has(&x, address), has(&a, address));
                prop_assert_eq!(has(&rest, address), has(&a, address) && !has(&b, address));
                prop_assert_eq!(has(&both, address), has(&a, address) && has(&b, address));
            }
            prop_assert_eq!(&merge(x.clone()), &x);
            prop_assert_eq!(&merge(rest.clone()), &rest);
            prop_assert_eq!(&merge(both.clone()), &both);
        }
    }
}
