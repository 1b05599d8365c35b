//! The leak hunt: pods that send from their first instruction to their last come and go in a real cluster, while
//! policies, labels, gateways and the product itself are changed and killed at random, and a capture outside
//! compares every packet with what its pod's verdict was at that moment.
//!
//! A verdict is old or new between the moment its change is sent and the moment the nodes' status says that it is in
//! place; otherwise there is but one. From its first packet to its last a pod that a policy selects shows the
//! policy's address or nothing.

mod api;
mod change;
mod churn;
mod judge;
mod model;
mod outside;
mod packet;
mod place;
mod random;
mod report;
mod safeguard;
mod settled;
mod timeline;
mod trouble;
mod world;

use std::{
    convert::Infallible,
    path::PathBuf,
    process::ChildStdout,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use report::Report;
use report::Tally;
pub use safeguard::{Safeguard, install};

use self::{
    api::Server,
    change::Change,
    outside::{Outside, next_packet},
    packet::Frames,
    place::EGRESS,
    random::Random,
    settled::Wait,
    world::{Pod, World, lock, now},
};
use crate::{
    cluster::Cluster,
    error::{Context, Result},
    images,
    progress::Progress,
    site::NODES,
};

/// How long a change may take until it is in place: longer than a new operator waits for the dead one's lease.
const IN_PLACE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(30);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(500);
const TELL: Duration = Duration::from_secs(5);

/// What a hunt is asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least so many pods.
    pub pods: usize,
    /// At least so many changes.
    pub changes: usize,
    /// What the pods, the changes and their order are made from.
    pub seed: u64,
    /// The program that the pods run.
    pub sender: PathBuf,
}

/// What is to be reached, and what has been.
#[derive(Debug)]
struct Goal {
    wanted: (usize, usize),
    pods: AtomicUsize,
    changes: AtomicUsize,
    given_up: AtomicBool,
}

impl Goal {
    fn reached(&self) -> (usize, usize) {
        (
            self.pods.load(Ordering::Relaxed),
            self.changes.load(Ordering::Relaxed),
        )
    }

    fn is_reached(&self) -> bool {
        let (pods, changes) = self.reached();
        self.given_up.load(Ordering::Relaxed) || pods >= self.wanted.0 && changes >= self.wanted.1
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn add_pods(&self, count: usize) {
        self.pods.fetch_add(count, Ordering::Relaxed);
    }

    fn add_changes(&self, count: usize) {
        self.changes.fetch_add(count, Ordering::Relaxed);
    }
}

/// Hunts in a cluster in which the chart is installed.
///
/// # Errors
/// When the lab fails. Wrong packets are no error, nor is a change that does not come into place: the report has them.
pub fn run(cluster: &Cluster, settings: &Settings, progress: &Progress) -> Result<Report> {
    let runtime = tokio::runtime::Runtime::new().context(|| "start a runtime".into())?;
    runtime.block_on(hunt(cluster, settings, progress))
}

async fn hunt(cluster: &Cluster, settings: &Settings, progress: &Progress) -> Result<Report> {
    let start = Instant::now();
    let mut random = Random::new(settings.seed);
    let server = Server::of(cluster).await?;
    let world = Arc::new(Mutex::new(World::new()));
    let outside = prepare(cluster, settings, &server).await?;
    progress.step(&format!("hunting with SEED={}", settings.seed));
    let (capture, frames) = outside.capture()?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let reader = {
        let (world, tally) = (Arc::clone(&world), Arc::clone(&tally));
        thread::spawn(move || read(frames, &world, &tally))
    };
    let goal = Goal {
        wanted: (settings.pods, settings.changes),
        pods: AtomicUsize::new(0),
        changes: AtomicUsize::new(0),
        given_up: AtomicBool::new(false),
    };
    let pods = Random::new(settings.seed.rotate_left(32));
    let work = async {
        tokio::try_join!(
            churn::run(&server, &world, pods, &goal),
            change_things(cluster, &server, &world, &mut random, &goal),
        )
    };
    let missing = tokio::select! {
        done = work => done?.1,
        never = churn::note_removals(&server, &world) => match never {},
        never = tell(progress, &goal, &tally) => match never {},
    };
    capture.interrupt()?;
    reader
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let world = lock(&world).clone();
    let (pods, changes) = goal.reached();
    Ok(Report {
        seed: settings.seed,
        pods,
        heard: world.pods.values().filter(|pod| pod.heard.is_some()).count(),
        changes,
        missing,
        tally: held(&tally).clone(),
        lost: capture.lost()?,
        took: start.elapsed(),
        world,
    })
}

/// The pods' image, the hosts outside, addresses and labels.
async fn prepare(cluster: &Cluster, settings: &Settings, server: &Server) -> Result<Outside> {
    let archive = images::build_sender(&settings.sender, &cluster.site().path("images"))?;
    cluster.load_images(&[archive])?;
    let world = World::new();
    for (pair, holder) in EGRESS.into_iter().zip(world.holders) {
        api::move_addresses(cluster, pair, holder)?;
    }
    server.prepare(&world).await?;
    let outside = Outside::create(cluster.site())?;
    outside.serve()?;
    Ok(outside)
}

/// Judges packets until the capture ends.
fn read(
    mut frames: Frames<std::io::BufReader<ChildStdout>>,
    world: &Mutex<World>,
    tally: &Mutex<Tally>,
) -> Result<()> {
    let mut frame = Vec::new();
    let broken = || "read the capture".to_owned();
    while let Some(packet) = next_packet(&mut frames, &mut frame).context(broken)? {
        let mut world = lock(world);
        if let Some(pod) = packet.port.and_then(|port| world.pods.get_mut(&port)) {
            pod.heard.get_or_insert(packet.at);
        }
        held(tally).take(&packet, &world);
    }
    Ok(())
}

/// One batch of changes after the other, each after the one before is in place, until the goal is reached.
async fn change_things(
    cluster: &Cluster,
    server: &Server,
    world: &Mutex<World>,
    random: &mut Random,
    goal: &Goal,
) -> Result<Option<String>> {
    while !goal.is_reached() {
        let changes = change::draw(random, &lock(world));
        goal.add_changes(changes.len());
        let missing = make(cluster, server, world, &changes).await?;
        if missing.is_some() {
            goal.give_up();
            return Ok(missing);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(None)
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
    for change in changes {
        lock(world).change(now(), change);
        server.send(cluster, world, change).await?;
    }
    let (deadline, mut wait) = (Instant::now() + IN_PLACE, Wait::new(now()));
    loop {
        let plans = server.plans().await?;
        let missing = {
            let mut world = lock(world);
            let missing = wait.missing(&world, &plans);
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

/// Says every few seconds how far it is. Ends never.
async fn tell(progress: &Progress, goal: &Goal, tally: &Mutex<Tally>) -> Infallible {
    loop {
        tokio::time::sleep(TELL).await;
        let (pods, changes) = goal.reached();
        let tally = held(tally);
        progress.step(&format!(
            "{pods} pods, {changes} changes, {} packets seen, {} judged, {} wrong",
            tally.seen, tally.judged, tally.wrong
        ));
    }
}

fn held(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a pod is.
fn describe(pod: &Pod) -> String {
    let namespace = place::NAMESPACES[pod.namespace];
    format!("{namespace}, {}, {}", NODES[pod.node].name, pod.label.last())
}
