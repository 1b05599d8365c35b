//! Pods that come and go, in waves.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, future::try_join_all, pin_mut};
use k8s_openapi::api::core::v1;
use kube::{Api, ResourceExt};
use kube_runtime::watcher::{self, Event, watcher};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    api::{Grace, Server},
    goal::Goal,
    place::{FIRST_PORT, LABEL},
    random::Random,
    timeline::Time,
    world::{Pod, World, lock, now},
};
use crate::error::Result;

/// Pods are numbered.
const PREFIX: &str = "hunt-";
/// How many pods come at once, each second.
const WAVE: usize = 10;
/// How many pods there are at a time; beyond, a wave goes as one comes.
const CROWD: usize = 40;
/// How many pods the kubelets may be behind with, coming and going; beyond, no wave comes.
const BEHIND: usize = 30;
/// A pod that runs and was not heard by then is not late: its packets are dropped.
const SILENT: Time = 5_000_000_000;
/// So many of those that are deleted may be of any age: most have been heard.
const OF_ANY_AGE: usize = 8;

/// Waves of pods until the goal is reached.
pub async fn run(
    server: Server,
    world: Arc<Mutex<World>>,
    mut random: Random,
    goal: Arc<Goal>,
) -> Result<()> {
    let (server, world) = (&server, &*world);
    let mut clock = interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut created = 0;
    while !goal.is_reached() {
        clock.tick().await;
        let (there, behind) = census(&lock(world));
        if behind <= BEHIND {
            let wave = (0..WAVE).map(|index| create(server, world, draw(&mut random, created + index)));
            try_join_all(wave).await?;
            created += WAVE;
            goal.add_pods(WAVE);
        }
        if there + WAVE > CROWD {
            let wave = choose(&mut random, &lock(world));
            try_join_all(
                wave.into_iter()
                    .map(|(port, grace)| delete(server, world, port, grace)),
            )
            .await?;
        }
    }
    Ok(())
}

/// Deletes all that are left.
pub async fn end(server: &Server, world: &Mutex<World>) -> Result<()> {
    let is_there = |(port, pod): (&u16, &Pod)| pod.deleted.is_none().then_some(*port);
    let left: Vec<u16> = lock(world).pods.iter().filter_map(is_there).collect();
    try_join_all(
        left.into_iter()
            .map(|port| delete(server, world, port, Grace::Now)),
    )
    .await?;
    Ok(())
}

/// Notes which addresses pods get, and when they are gone from the API server. Ends never.
pub async fn watch(server: Server, world: Arc<Mutex<World>>) -> Infallible {
    let pods: Api<v1::Pod> = Api::all(server.client().clone());
    let events = watcher(pods, watcher::Config::default().labels(LABEL));
    pin_mut!(events);
    loop {
        match events.next().await {
            Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) => {
                let status = pod.status.as_ref();
                let address = status.and_then(|status| status.pod_ip.as_deref());
                if let (Some(port), Some(address)) = (port_of(&pod), address) {
                    lock(&world).has_address(port, address, now());
                }
            }
            Some(Ok(Event::Delete(pod))) => {
                let mut world = lock(&world);
                let known = port_of(&pod).and_then(|port| world.pods.get_mut(&port));
                if let Some(known) = known.filter(|known| known.name == pod.name_any()) {
                    known.removed.get_or_insert_with(now);
                }
            }
            // What the watch says of itself, it mends itself.
            _ => {}
        }
    }
}

/// The port that a pod sends to: see [`draw`].
fn port_of(pod: &v1::Pod) -> Option<u16> {
    Some(port(pod.name_any().strip_prefix(PREFIX)?.parse().ok()?))
}

fn port(number: usize) -> u16 {
    let ports = usize::from(u16::MAX - FIRST_PORT);
    FIRST_PORT + u16::try_from(number % ports).unwrap_or_default()
}

/// How many pods there are, and with how many the kubelets are behind: those that wait for their first packet, and
/// those that are to be gone and are not.
fn census(world: &World) -> (usize, usize) {
    let now = now();
    let is_there = |pod: &&Pod| pod.deleted.is_none();
    let is_late = |pod: &&Pod| match pod.deleted {
        None => !is_ripe(pod, now),
        Some(_) => pod.removed.is_none(),
    };
    let count = |is: &dyn Fn(&&Pod) -> bool| world.pods.values().filter(is).count();
    (count(&is_there), count(&is_late))
}

/// The next pod.
fn draw(random: &mut Random, number: usize) -> (u16, Pod, bool) {
    let pod = Pod::draw(random, format!("{PREFIX}{number}"));
    (port(number), pod, random.one_in(2))
}

async fn create(
    server: &Server,
    world: &Mutex<World>,
    (port, mut pod, obeys): (u16, Pod, bool),
) -> Result<()> {
    {
        let mut world = lock(world);
        pod.created = now();
        world.pods.insert(port, pod.clone());
    }
    let uid = server.create_pod(port, &pod, obeys).await?;
    if let Some(pod) = lock(world).pods.get_mut(&port) {
        pod.uid = uid;
    }
    Ok(())
}

/// Whether a pod has been heard, or will not be.
fn is_ripe(pod: &Pod, now: Time) -> bool {
    pod.heard.is_some() || pod.started.is_some_and(|started| now > started + SILENT)
}

/// A wave of those that are ripe, and of a few that may not have begun yet.
fn choose(random: &mut Random, world: &World) -> Vec<(u16, Grace)> {
    let now = now();
    let there = world.pods.iter().filter(|(_, pod)| pod.deleted.is_none());
    let mut ripe: Vec<u16> = there
        .filter(|(_, pod)| is_ripe(pod, now) || random.one_in(OF_ANY_AGE))
        .map(|(port, _)| *port)
        .collect();
    let mut wave = Vec::new();
    while wave.len() < WAVE && !ripe.is_empty() {
        let port = ripe.remove(random.below(ripe.len()));
        wave.push((port, random.pick(&[Grace::Own, Grace::Now, Grace::Forced])));
    }
    wave
}

async fn delete(server: &Server, world: &Mutex<World>, port: u16, grace: Grace) -> Result<()> {
    let chosen = lock(world).pods.get_mut(&port).map(|pod| {
        pod.deleted = Some(now());
        (pod.namespace, pod.name.clone())
    });
    match chosen {
        Some((namespace, name)) => server.delete_pod(namespace, &name, grace).await,
        None => Ok(()),
    }
}
