//! What has been repaired, as the plan's status tells it.

use std::collections::BTreeMap;

use egressnat_crds::plan::Repair;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::diff::Touched;

/// How much of a text is told, in octets.
const LONGEST: usize = 200;

/// The latest repairs, those of `before` and of `touched` now: the latest first, a thing that is touched again
/// counted up.
pub(super) fn repairs(before: &[Repair], touched: &[Touched], now: Timestamp) -> Vec<Repair> {
    let mut by_thing: BTreeMap<_, Repair> = before
        .iter()
        .map(|repair| ((repair.object, repair.what.clone()), repair.clone()))
        .collect();
    for Touched { object, what } in touched {
        let what = shortened(what);
        let repair = by_thing.entry((*object, what.clone())).or_insert_with(|| Repair {
            object: *object,
            what,
            count: 0,
            last_time: Time(now),
        });
        repair.count = repair.count.saturating_add(1);
        repair.last_time = Time(now);
    }
    let mut repairs: Vec<Repair> = by_thing.into_values().collect();
    repairs.sort_by_key(|repair| std::cmp::Reverse(repair.last_time.0));
    repairs.truncate(Repair::MAX);
    repairs
}

fn shortened(text: &str) -> String {
    match text.len() > LONGEST {
        true => format!("{}...", &text[..text.floor_char_boundary(LONGEST)]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::RepairedObject::{IpRule, Route};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_thing_that_is_touched_again_is_counted_up_and_comes_first() {
        let (rule, route) = (Touched::new(IpRule, "r"), Touched::new(Route, "r"));
        let first = repairs(&[], &[rule.clone(), route], at(1));
        assert_eq!(first.len(), 2, "of another kind");
        let second = repairs(&first, &[rule], at(2));
        let told: Vec<_> = second
            .iter()
            .map(|r| (r.object, r.count, r.last_time.0))
            .collect();
        assert_eq!(told, [(IpRule, 2, at(2)), (Route, 1, at(1))]);
        assert_eq!(repairs(&second, &[], at(3)), second, "time alone changes nothing");
    }

    #[test]
    fn the_latest_are_kept() {
        let mut all = Vec::new();
        for n in 0..40 {
            all = repairs(&all, &[Touched::new(Route, n)], at(n));
        }
        assert_eq!(all.len(), Repair::MAX);
        let (first, last) = (&all[0].what, &all[Repair::MAX - 1].what);
        assert_eq!((first.as_str(), last.as_str()), ("39", "24"));
        let long = repairs(&[], &[Touched::new(Route, "ü".repeat(300))], at(1));
        assert!(long[0].what.len() < 210 && long[0].what.ends_with("ü..."));
    }
}
