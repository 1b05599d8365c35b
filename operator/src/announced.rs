//! Of which faults pods have been told already, and how many are told at once.
//!
//! Pure, but for its memory: a fault is told when it is new, and again only after it was gone. Another process that
//! leads begins anew.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::plan::faults::Fault;

/// How long to the next look at all pods.
const PAUSE: Duration = Duration::from_secs(10);
/// Faults told after one look: a policy for all pods may have thousands.
const AT_ONCE: usize = 16;
/// Faults remembered. Beyond them none is told.
const MOST: usize = 65_536;

/// What can be told.
pub trait Numbered {
    /// The same news has the same number.
    fn number(&self) -> u64;
}

impl Numbered for Fault<'_> {
    fn number(&self) -> u64 {
        Fault::number(self)
    }
}

/// The faults of which pods have been told, or other news of which others have.
#[derive(Debug)]
pub struct Announced {
    numbers: BTreeSet<u64>,
    /// There may be faults that are new.
    stale: bool,
    next: Option<Instant>,
}

impl Default for Announced {
    fn default() -> Self {
        Self {
            numbers: BTreeSet::new(),
            stale: true,
            next: None,
        }
    }
}

impl Announced {
    /// The world is another.
    pub fn world_changed(&mut self) {
        self.stale = true;
    }

    /// Whether it is time for a look; the next one is a while after it, and not before something changes.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.stale && self.next.is_none_or(|next| next <= now);
        if due {
            self.next = Some(now + PAUSE);
            self.stale = false;
        }
        due
    }

    /// When the next look is due; never while nothing changes.
    pub fn next(&self) -> Option<Instant> {
        self.next.filter(|_| self.stale)
    }

    /// The first few of those faults that are new; they are not new any more.
    pub fn news<T: Numbered>(&mut self, mut faults: Vec<T>) -> Vec<T> {
        let present: BTreeSet<u64> = faults.iter().map(T::number).collect();
        self.numbers.retain(|number| present.contains(number));
        faults.retain(|fault| !self.numbers.contains(&fault.number()));
        let room = AT_ONCE.min(MOST.saturating_sub(self.numbers.len()));
        self.stale |= faults.len() > room;
        faults.truncate(room);
        self.numbers.extend(faults.iter().map(T::number));
        faults
    }

    /// The fault with this number was not told after all.
    pub fn forget(&mut self, number: u64) {
        self.numbers.remove(&number);
        self.stale = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Planner;
    use crate::testing;
    use crate::world::World;

    /// So many pods on their node's network, which a policy selects.
    fn world(pods: usize) -> World {
        let mut documents = vec![
            "{kind: Node, metadata: {name: n, uid: n}}".to_owned(),
            "{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, metadata: {name: p, uid: p}, \
              spec: {selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1}}"
                .to_owned(),
        ];
        documents.extend((0..pods).map(|n| {
            format!(
                "{{kind: Pod, metadata: {{namespace: d, name: p{n}, uid: u{n}}}, \
                  spec: {{nodeName: n, hostNetwork: true}}, status: {{phase: Running}}}}"
            )
        }));
        testing::world(&documents.join("\n---\n"))
    }

    fn told(announced: &mut Announced, world: &World) -> Vec<String> {
        let planner = Planner::new(world);
        let news = announced.news(planner.faults(world));
        news.iter().map(|fault| fault.pod.name.clone()).collect()
    }

    #[test]
    fn a_fault_is_told_once_and_again_when_it_was_gone() {
        let mut announced = Announced::default();
        let (one, none) = (world(1), world(0));
        assert_eq!(told(&mut announced, &one), ["p0"]);
        assert!(told(&mut announced, &one).is_empty());
        assert!(told(&mut announced, &none).is_empty());
        assert_eq!(told(&mut announced, &one), ["p0"]);
        let number = Planner::new(&one).faults(&one)[0].number();
        announced.forget(number);
        assert_eq!(told(&mut announced, &one), ["p0"], "that one was not sent");
    }

    #[test]
    fn many_are_told_a_few_at_a_time_and_each_once() {
        let (mut announced, many) = (Announced::default(), world(40));
        let mut all: Vec<String> = Vec::new();
        for expected in [16, 16, 8, 0] {
            let told = told(&mut announced, &many);
            assert_eq!(told.len(), expected);
            all.extend(told);
        }
        let distinct: BTreeSet<String> = all.into_iter().collect();
        assert_eq!(distinct.len(), 40);
        assert!(told(&mut announced, &world(0)).is_empty());
        assert!(announced.numbers.is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn looks_are_apart() {
        let (mut announced, now) = (Announced::default(), Instant::now());
        let seconds = [0, 1, 9, 10, 11, 25];
        let due = seconds.map(|s| {
            announced.world_changed();
            announced.is_due(now + Duration::from_secs(s))
        });
        assert_eq!(due, [true, false, false, true, false, true]);
    }

    #[test]
    fn nobody_looks_while_nothing_changes_and_all_has_been_told() {
        let (mut announced, many) = (Announced::default(), world(20));
        let mut now = Instant::now();
        let mut look = |announced: &mut Announced| {
            now += PAUSE;
            announced.is_due(now).then(|| told(announced, &many).len())
        };
        assert_eq!(
            [0; 4].map(|_| look(&mut announced)),
            [Some(16), Some(4), None, None]
        );
        announced.world_changed();
        assert_eq!([0; 2].map(|_| look(&mut announced)), [Some(0), None]);
        let number = Planner::new(&many).faults(&many)[0].number();
        announced.forget(number);
        assert_eq!([0; 2].map(|_| look(&mut announced)), [Some(1), None]);
    }
}
