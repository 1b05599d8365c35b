//! Changes at random, each after the one before is in place.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::task::block_in_place;

use super::{
    Settings,
    api::Server,
    change::Change,
    draw::draw,
    goal::Goal,
    misdirected::Misdirected,
    random::Random,
    settled::Wait,
    timeline::Time,
    world::{World, lock, now},
};
use crate::{cluster::Cluster, error::Result};

/// How long a change may take until it is in place: longer than a new operator waits for the dead one's lease.
const IN_PLACE: Duration = Duration::from_secs(60);
/// The lists of all plans are what a hunt costs the API server most.
const LOOK: Duration = Duration::from_millis(100);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(500);

/// What the changes came to.
#[derive(Debug, Default)]
pub struct End {
    /// What the last of them still lacked when it had had its time.
    pub missing: Option<String>,
    /// Packets that came to a node which is no gateway for them.
    pub misdirected: u64,
    /// When the first of them were noticed.
    pub first_misdirected: Option<Time>,
}

/// Who changes what, and how long.
pub struct Changing<'a> {
    pub cluster: &'a Cluster,
    pub server: &'a Server,
    pub world: &'a Mutex<World>,
    pub goal: &'a Goal,
    pub settings: &'a Settings,
}

impl Changing<'_> {
    /// One batch of changes after the other, each after the one before is in place, until the goal is reached.
    pub async fn run(&self) -> Result<End> {
        let mut random = Random::new(self.settings.seed);
        let mut misdirected = Misdirected::watch(self.cluster)?;
        let mut end = End::default();
        for number in 0.. {
            if self.goal.is_reached() {
                break;
            }
            let changes = draw(&mut random, &lock(self.world), self.settings.favour);
            self.goal.add_changes(changes.len());
            end.missing = self.make(number, &changes).await?;
            self.look(&mut misdirected, &mut end)?;
            if end.missing.is_some() || self.settings.until_wrong && end.misdirected > 0 {
                self.goal.give_up();
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.look(&mut misdirected, &mut end)?;
        Ok(end)
    }

    /// Makes changes, and waits until all of them are in place.
    ///
    /// Returns what is missing still when they have had their time.
    async fn make(&self, number: usize, changes: &[Change]) -> Result<Option<String>> {
        let sent = now();
        for change in changes {
            lock(self.world).change(now(), change);
            self.server.send(self.cluster, self.world, change).await?;
        }
        self.server.send_barrier(number).await?;
        let (deadline, mut wait) = (Instant::now() + IN_PLACE, Wait::new(sent));
        loop {
            let (policies, plans) = self.server.shown().await?;
            let missing = {
                let mut world = lock(self.world);
                let missing = wait.missing(&world, &policies, &plans);
                if missing.is_empty() {
                    world.settle(now());
                    return Ok(None);
                }
                missing
            };
            if Instant::now() > deadline {
                return Ok(Some(missing.join(", ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Have more packets come to a wrong gateway?
    fn look(&self, misdirected: &mut Misdirected, end: &mut End) -> Result<()> {
        for (count, what) in block_in_place(|| misdirected.look(self.cluster))? {
            let now = now();
            lock(self.world).note(now, what);
            end.misdirected += count;
            end.first_misdirected.get_or_insert(now);
        }
        Ok(())
    }
}
