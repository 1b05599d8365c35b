//! Ranges as people write them.

use std::net::IpAddr;

use egressnat_crds::interval::{Interval, next, previous};
use egressnat_crds::ports::PortRange;
use egressnat_operator::ranges;
use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

/// The fewest CIDRs that make up a range.
pub fn nets(range: &Interval) -> Vec<IpNet> {
    match (range.first(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => IpSubnets::V4(Ipv4Subnets::new(first, last, 0)).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => IpSubnets::V6(Ipv6Subnets::new(first, last, 0)).collect(),
        _ => Vec::new(),
    }
}

/// Addresses that are in both; both as [`ranges::merge`] gives them, and so is the answer.
pub fn common(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    ranges::subtract(a, &ranges::subtract(a, b))
}

/// Whether the address is in one of the ranges.
pub fn contain(ranges: &[Interval], address: IpAddr) -> bool {
    ranges.iter().any(|r| r.contains(address))
}

/// A range: an address, a CIDR, `FIRST-LAST`, or words where it is a whole family.
pub fn range(range: &Interval) -> String {
    if previous(range.first()).is_none() && next(range.last()).is_none() {
        let family = if range.first().is_ipv4() { "IPv4" } else { "IPv6" };
        return format!("every {family} address outside the cluster");
    }
    match nets(range).as_slice() {
        [one] if one.prefix_len() == one.max_prefix_len() => one.addr().to_string(),
        [one] => one.to_string(),
        _ => range.to_string(),
    }
}

/// The first few ranges, and how many more there are.
pub fn ranges(list: &[Interval]) -> String {
    const SHOWN: usize = 4;
    if *list == ranges::everything() {
        return "everything outside the cluster".into();
    }
    let mut words: Vec<String> = list.iter().take(SHOWN).map(range).collect();
    if let Some(more) = list.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        words.push(format!("{more} more ranges"));
    }
    join(&words)
}

/// What the outside sees as the source of packets.
pub fn source(addresses: &[IpAddr], ports: Option<PortRange>) -> String {
    let addresses = join(addresses);
    match ports {
        None => addresses,
        Some(ports) => format!("{addresses} with ports {ports}"),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub fn join<T: ToString>(words: &[T]) -> String {
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    match words.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> Vec<Interval> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn a_range_is_written_as_people_do() {
        for (interval, words) in [
            ("192.0.2.1-192.0.2.1", "192.0.2.1"),
            ("192.0.2.0-192.0.2.255", "192.0.2.0/24"),
            ("192.0.2.1-192.0.2.9", "192.0.2.1-192.0.2.9"),
            (
                "0.0.0.0-255.255.255.255",
                "every IPv4 address outside the cluster",
            ),
            ("2001:db8::-2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ] {
            assert_eq!(range(&interval.parse().unwrap()), words);
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let six: Vec<Interval> = (0..6)
            .map(|n| format!("10.0.{}.1-10.0.{}.1", 2 * n, 2 * n).parse().unwrap())
            .collect();
        assert_eq!(
            ranges(&six),
            "10.0.0.1, 10.0.2.1, 10.0.4.1, 10.0.6.1 and 2 more ranges"
        );
        assert_eq!(
            ranges(&egressnat_operator::ranges::everything()),
            "everything outside the cluster"
        );
    }

    #[test]
    fn what_two_sets_have_in_common() {
        let a = set(&["10.0.0.0-10.0.0.9", "10.0.1.0-10.0.1.9"]);
        let b = set(&["10.0.0.5-10.0.1.4"]);
        assert_eq!(common(&a, &b), set(&["10.0.0.5-10.0.0.9", "10.0.1.0-10.0.1.4"]));
        assert_eq!(common(&a, &[]), []);
    }
}
