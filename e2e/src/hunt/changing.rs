//! Changes at random, each after the one before is in place.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::task::block_in_place;

use super::{
    api::Server,
    change::{self, Change},
    goal::Goal,
    misdirected::Misdirected,
    random::Random,
    settled::Wait,
    world::{World, lock, now},
};
use crate::{cluster::Cluster, error::Result};

/// How long a change may take until it is in place: longer than a new operator waits for the dead one's lease.
const IN_PLACE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(30);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(500);

/// What the changes came to.
#[derive(Debug, Default)]
pub struct End {
    /// What the last of them still lacked when it had had its time.
    pub missing: Option<String>,
    /// Packets that came to a node which is no gateway for them.
    pub misdirected: u64,
}

/// One batch of changes after the other, each after the one before is in place, until the goal is reached.
pub async fn run(
    cluster: &Cluster,
    server: &Server,
    world: &Mutex<World>,
    mut random: Random,
    goal: &Goal,
) -> Result<End> {
    let mut misdirected = Misdirected::default();
    let mut end = End::default();
    while !goal.is_reached() {
        let changes = change::draw(&mut random, &lock(world));
        goal.add_changes(changes.len());
        end.missing = make(cluster, server, world, &changes).await?;
        end.misdirected = block_in_place(|| misdirected.look(cluster))?;
        if end.missing.is_some() {
            goal.give_up();
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(end)
}

/// Makes changes, and waits until all of them are in place.
///
/// Returns what is missing still when they have had their time.
async fn make(
    cluster: &Cluster,
    server: &Server,
    world: &Mutex<World>,
    changes: &[Change],
) -> Result<Option<String>> {
    let sent = now();
    for change in changes {
        lock(world).change(now(), change);
        server.send(cluster, world, change).await?;
    }
    let (deadline, mut wait) = (Instant::now() + IN_PLACE, Wait::new(sent));
    loop {
        let (policies, plans) = server.shown().await?;
        let missing = {
            let mut world = lock(world);
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
