//! The judge before products of which it is known whether they leak: histories at random, and packets as a product
//! sends them that does what was sent last, or does not.

use std::net::IpAddr;

use super::{
    draw::draw,
    judge::{Judgement, judge},
    model::applies,
    packet::{Packet, What},
    place::{EGRESS, FIRST_PORT, OUTSIDE},
    random::Random,
    timeline::Time,
    world::{Pod, World},
};
use crate::site::NODES;

const BATCHES: Time = 200;
const BETWEEN: Time = 100;
const PODS: usize = 12;

/// What a product makes of each pod and destination: the source of the packets that it sends now.
type Sources = Vec<(u16, usize, IpAddr)>;

/// As the API server has it at this moment.
fn wanted(world: &World) -> Sources {
    let mut sources = Vec::new();
    for (port, pod) in &world.pods {
        for destination in 0..OUTSIDE.len() {
            let policies = world.current_policies().map(|(_, policy)| policy);
            let policy = applies(policies, world.labels(pod), destination);
            let source = policy.map_or(NODES[pod.node].v4.into(), |policy| EGRESS[policy.egress][0]);
            sources.push((*port, destination, source));
        }
    }
    sources
}

fn wrong(world: &World, at: Time, sources: &Sources) -> usize {
    let is_wrong = |(port, destination, source): &&(u16, usize, IpAddr)| {
        let packet = Packet {
            at,
            source: *source,
            destination: *destination,
            port: Some(*port),
            what: What::Datagram,
            forwarded: true,
            name: Some(world.pods[port].name.clone()),
        };
        matches!(judge(&packet, world), Judgement::Wrong(_))
    };
    sources.iter().filter(is_wrong).count()
}

fn world(random: &mut Random) -> World {
    let mut world = World::new();
    for port in (FIRST_PORT..).take(PODS) {
        let pod = Pod::draw(random, format!("hunt-{port}"));
        world.pods.insert(port, pod);
    }
    world
}

/// Wrong packets of one that may be late as long as a change is not in place, and of one that then still does what
/// was wanted before it; and how many of the latter's differed.
fn hunted(seed: u64) -> (usize, usize, usize) {
    let mut random = Random::new(seed);
    let mut world = world(&mut random);
    let (mut of_good, mut of_late, mut late) = (0, 0, 0);
    for sent in (1..=BATCHES).map(|batch| batch * BETWEEN) {
        let before = wanted(&world);
        let changes = draw(&mut random, &world, None);
        changes.iter().for_each(|change| world.change(sent, change));
        let after = wanted(&world);
        of_good += wrong(&world, sent, &before) + wrong(&world, sent + 1, &after);
        let settled = sent + 2;
        world.settle(settled);
        of_good += wrong(&world, settled, &after);
        let outdated: Sources = before
            .into_iter()
            .filter(|packet| !after.contains(packet))
            .collect();
        of_late += wrong(&world, settled, &outdated);
        late += outdated.len();
    }
    (of_good, of_late, late)
}

#[test]
fn a_product_that_does_as_it_should_is_never_wrong_and_a_late_one_always() {
    for seed in 0..5 {
        let (of_good, of_late, late) = hunted(seed);
        assert_eq!(of_good, 0, "seed {seed}");
        assert!(late > 50, "seed {seed}: {late} packets show nothing");
        assert_eq!(of_late, late, "seed {seed}");
    }
}

#[test]
fn a_history_that_was_written_down_wrongly_shows() {
    let mut random = Random::new(7);
    let mut world = world(&mut random);
    let mut found = 0;
    for sent in (1..=BATCHES).map(|batch| batch * BETWEEN) {
        let mut kept = world.clone();
        let changes = draw(&mut random, &world, None);
        changes.iter().for_each(|change| world.change(sent, change));
        world.settle(sent + 1);
        // Of the last change, this history knows nothing.
        for change in &changes[..changes.len() - 1] {
            kept.change(sent, change);
        }
        kept.settle(sent + 1);
        found += wrong(&kept, sent + 2, &wanted(&world));
    }
    assert!(found > 50, "{found}");
}
