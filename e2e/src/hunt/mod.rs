//! The leak hunt: pods that send from their first instruction to their last come and go in a real cluster, while
//! policies, labels, gateways and the product itself are changed and killed at random, and a capture outside
//! compares every packet with what its pod's verdict was at that moment.
//!
//! A verdict is old or new between the moment its change is sent and the moment the nodes' status says that it is in
//! place; otherwise there is but one. From its first packet to its last a pod that a policy selects shows the
//! policy's address or nothing.

mod api;
mod change;
mod changing;
mod churn;
mod draw;
mod goal;
mod judge;
mod misdirected;
mod model;
mod outside;
mod packet;
mod place;
#[cfg(test)]
mod products;
mod proof;
mod random;
mod report;
mod safeguard;
mod settled;
mod timeline;
mod trouble;
mod world;

use std::{
    convert::Infallible,
    panic,
    path::Path,
    process::ChildStdout,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

pub use proof::{Proof, prove};
pub use report::Report;
use report::Tally;
pub use safeguard::Safeguard;

use self::{
    api::Server,
    changing::{Changing, End},
    goal::Goal,
    outside::{Outside, next_packet},
    packet::Frames,
    place::EGRESS,
    random::Random,
    world::{Pod, World, lock},
};
use crate::{
    cluster::Cluster,
    error::{Context, Result},
    images,
    kube_proxy::KubeProxyMode,
    network::Network,
    progress::Progress,
    site::{NODES, Site},
    temporary::Temporary,
};

/// The cluster's name: a hunt can run beside the lab and the tests.
const CLUSTER: &str = "egressnat-hunt";
const LOOK: Duration = Duration::from_millis(30);
/// How long nothing must come from pods that are deleted, and how long the kubelets have for that.
const SILENCE: Duration = Duration::from_secs(3);
const AT_THE_END: Duration = Duration::from_secs(90);
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
    /// Ends at once when a packet was wrong, or misdirected.
    pub until_wrong: bool,
    /// The safeguard that the changes are to try more than others.
    pub favour: Option<Safeguard>,
    /// Values for the chart, as helm's `--set` takes them.
    pub values: Vec<String>,
    /// Safeguards that are left out.
    pub without: Vec<Safeguard>,
}

/// Hunts in a cluster of its own. `programs` is the folder of the lab's programs.
///
/// # Errors
/// When the lab fails. Wrong packets are no error, nor is a change that does not come into place: the report has them.
pub fn run(programs: &Path, settings: &Settings, progress: &Progress) -> Result<Report> {
    let site = Site::new(CLUSTER, &programs.join("lab"));
    let cluster = Temporary::up(&site, KubeProxyMode::Nftables, Network::Ptp, progress)?;
    safeguard::install(&cluster, &settings.values, &settings.without)?;
    let sender = images::build_sender(&programs.join("sender"), &site.path("images"))?;
    cluster.load_images(&[sender])?;
    let runtime = tokio::runtime::Runtime::new().context(|| "start a runtime".into())?;
    let report = runtime.block_on(hunt(&cluster, settings, progress))?;
    if let Err(error) = cluster.down() {
        progress.step(&format!("the cluster is not gone: {error}"));
    }
    Ok(report)
}

async fn hunt(cluster: &Cluster, settings: &Settings, progress: &Progress) -> Result<Report> {
    let start = Instant::now();
    let server = Server::of(cluster).await?;
    let world = Arc::new(Mutex::new(World::new()));
    let outside = prepare(cluster, &server).await?;
    progress.step(&format!("hunting with SEED={}", settings.seed));
    let goal = Arc::new(Goal::new((settings.pods, settings.changes)));
    let (capture, frames) = outside.capture()?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let reader = {
        let (world, tally) = (Arc::clone(&world), Arc::clone(&tally));
        let goal = settings.until_wrong.then(|| Arc::clone(&goal));
        thread::spawn(move || read(frames, &world, &tally, goal.as_deref()))
    };

    // Tasks of their own: changing things blocks its thread at times.
    let pods = Random::new(settings.seed.rotate_left(32));
    let churn = {
        let (server, world, goal) = (server.clone(), Arc::clone(&world), Arc::clone(&goal));
        async move {
            let ended = churn::run(server, world, pods, Arc::clone(&goal)).await;
            if ended.is_err() {
                goal.give_up();
            }
            ended
        }
    };
    let churn = tokio::spawn(churn);
    let watch = tokio::spawn(churn::watch(server.clone(), Arc::clone(&world)));
    let changing = Changing {
        cluster,
        server: &server,
        world: &world,
        goal: &goal,
        settings,
    };
    let End {
        missing,
        misdirected,
        first_misdirected,
    } = tokio::select! {
        end = changing.run() => end?,
        never = tell(progress, &goal, &tally) => match never {},
    };
    churn
        .await
        .unwrap_or_else(|error| panic::resume_unwind(error.into_panic()))?;
    churn::end(&server, &world).await?;
    let silent = silence(&tally).await;
    watch.abort();
    capture.interrupt()?;
    reader
        .join()
        .unwrap_or_else(|panic| panic::resume_unwind(panic))?;
    let world = lock(&world).clone();
    let (pods, changes) = goal.reached();
    Ok(Report {
        seed: settings.seed,
        pods,
        heard: world.pods.values().filter(|pod| pod.heard.is_some()).count(),
        changes,
        missing,
        misdirected,
        first_misdirected,
        silent,
        tally: held(&tally).clone(),
        lost: capture.lost()?,
        took: start.elapsed(),
        world,
    })
}

/// The hosts outside, addresses and labels.
async fn prepare(cluster: &Cluster, server: &Server) -> Result<Outside> {
    let world = World::new();
    for (pair, holder) in EGRESS.into_iter().zip(world.holders) {
        api::move_addresses(cluster, pair, holder)?;
    }
    server.prepare(&world).await?;
    let outside = Outside::create(cluster.site())?;
    outside.serve()?;
    Ok(outside)
}

/// Judges packets until the capture ends. With a goal, the first wrong one is the end.
fn read(
    mut frames: Frames<std::io::BufReader<ChildStdout>>,
    world: &Mutex<World>,
    tally: &Mutex<Tally>,
    until_wrong: Option<&Goal>,
) -> Result<()> {
    let mut frame = Vec::new();
    let broken = || "read the capture".to_owned();
    while let Some(packet) = next_packet(&mut frames, &mut frame).context(broken)? {
        let mut world = lock(world);
        if let Some(pod) = packet.port.and_then(|port| world.pods.get_mut(&port)) {
            pod.heard.get_or_insert(packet.at);
        }
        let mut tally = held(tally);
        tally.take(&packet, &world);
        if let Some(goal) = until_wrong.filter(|_| tally.wrong > 0) {
            goal.give_up();
        }
    }
    Ok(())
}

/// Waits until no packet has come for a while, all pods being deleted. Whether it came to that.
async fn silence(tally: &Mutex<Tally>) -> bool {
    let (deadline, mut last, mut since) = (Instant::now() + AT_THE_END, 0, Instant::now());
    while since.elapsed() < SILENCE {
        tokio::time::sleep(LOOK).await;
        let seen = held(tally).seen;
        if seen != last {
            (last, since) = (seen, Instant::now());
        }
        if Instant::now() > deadline {
            return false;
        }
    }
    true
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
