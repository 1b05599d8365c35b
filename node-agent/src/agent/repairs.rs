//! What has been repaired, as the plan's status tells it.

use std::collections::BTreeMap;
use std::time::Duration;

use egressnat_crds::plan::Repair;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::diff::Touched;

/// How long repairs alone wait after others were told: a hand that touches our things in a loop would have us write to the
/// API server in a loop.
const PAUSE: Duration = Duration::from_secs(1);

/// How many repairs wait to be told; beyond, they are not, but counted.
const WAITING: usize = 256;

/// How much of a text is told, in octets.
const LONGEST: usize = 200;

/// What has been repaired and not been told yet.
#[derive(Debug, Default)]
pub(super) struct Untold {
    touched: Vec<Touched>,
    /// When repairs were last told.
    told: Option<Instant>,
}

impl Untold {
    pub(super) fn add(&mut self, touched: &[Touched]) {
        self.touched.extend_from_slice(touched);
        self.touched.truncate(WAITING);
    }

    /// When they may be told without other news; never where there are none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let after = self.told.map_or(now, |told| told + PAUSE);
        (!self.touched.is_empty()).then_some(after)
    }

    /// They are about to be told.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Touched> {
        if !self.touched.is_empty() {
            self.told = Some(now);
        }
        std::mem::take(&mut self.touched)
    }

    /// They could not be told.
    pub(super) fn give_back(&mut self, mut touched: Vec<Touched>) {
        touched.append(&mut self.touched);
        touched.truncate(WAITING);
        self.touched = touched;
    }
}

/// The latest repairs, those of `before` and of `touched` now: the latest first, a thing that is touched again
/// counted up.
pub(super) fn after(before: &[Repair], touched: &[Touched], now: Timestamp) -> Vec<Repair> {
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
        let first = after(&[], &[rule.clone(), route], at(1));
        assert_eq!(first.len(), 2, "of another kind");
        let second = after(&first, &[rule], at(2));
        let told: Vec<_> = second
            .iter()
            .map(|r| (r.object, r.count, r.last_time.0))
            .collect();
        assert_eq!(told, [(IpRule, 2, at(2)), (Route, 1, at(1))]);
        assert_eq!(after(&second, &[], at(3)), second, "time alone changes nothing");
    }

    #[test]
    fn a_hand_that_never_rests_is_told_of_once_a_second_and_all_it_did_is_counted() {
        let began = Instant::now();
        let (mut untold, mut told, mut patches) = (Untold::default(), Vec::new(), 0);
        assert_eq!(untold.due(began), None);
        for tenth in 0..100 {
            let now = began + Duration::from_millis(100) * tenth;
            untold.add(&[Touched::new(Route, "r")]);
            if untold.due(now).is_some_and(|due| due <= now) {
                told = after(&told, &untold.take(now), at(1));
                patches += 1;
            }
        }
        assert_eq!(patches, 10);
        assert_eq!(told[0].count, 91);
        let last = began + Duration::from_secs(9);
        assert_eq!(untold.due(last), Some(last + PAUSE), "the rest waits");
    }

    #[test]
    fn what_could_not_be_told_is_told_with_what_came_since() {
        let (now, touched) = (Instant::now(), |name| Touched::new(Route, name));
        let mut untold = Untold::default();
        untold.add(&[touched("a")]);
        let lost = untold.take(now);
        assert_eq!(untold.due(now), None);
        untold.add(&[touched("b")]);
        untold.give_back(lost);
        assert_eq!(untold.due(now), Some(now + PAUSE));
        assert_eq!(untold.take(now), [touched("a"), touched("b")]);
    }

    #[test]
    fn the_latest_are_kept() {
        let mut all = Vec::new();
        for n in 0..40 {
            all = after(&all, &[Touched::new(Route, n)], at(n));
        }
        assert_eq!(all.len(), Repair::MAX);
        let (first, last) = (&all[0].what, &all[Repair::MAX - 1].what);
        assert_eq!((first.as_str(), last.as_str()), ("39", "24"));
        let long = after(&[], &[Touched::new(Route, "ü".repeat(300))], at(1));
        assert!(long[0].what.len() < 210 && long[0].what.ends_with("ü..."));
    }
}
