//! Thousands of random worlds: the model, the planner and the compiled rules say the same.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::net::IpAddr;

use egressnat_agent::owned::Numbers;
use egressnat_operator::plan::{Outcome, plan};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use crate::expected::{Capture, NotCaptured, Verdict, expected, owner, say};
use crate::gateway::compete;
use crate::generate::worlds;
use crate::journey::Cluster;
use crate::planned::planned;
use crate::probes::destinations;
use crate::ruleset::Packet;
use crate::world::{Pod, World};

/// Worlds with policies whose entries compete for a gateway.
const COMPETING: &str = "competing entries";

/// How often each kind of verdict was met.
pub type Tally = BTreeMap<&'static str, u64>;

#[test]
fn the_planner_says_what_the_model_says() {
    let tally = check(worlds(), 1200, by_plans);
    assert!(tally.contains_key(COMPETING), "no world had entries that compete");
}

#[test]
fn the_compiled_rules_do_what_the_model_says() {
    check(worlds(), 900, by_rules);
}

/// The model against what is read off the plans.
pub fn by_plans(world: &World, tally: &mut Tally) -> Result<(), String> {
    let outcome = plan(&world.known());
    no_gateway_is_two(&outcome)?;
    let competing = world.policies.iter().filter(|p| compete(world, p)).count();
    if competing > 0 {
        *tally.entry(COMPETING).or_default() += 1;
    }
    let mut chosen = Chosen::default();
    for destination in destinations(world) {
        for pod in &world.pods {
            let verdict = expected(world, pod, destination);
            compare(
                &mut chosen,
                pod,
                destination,
                &verdict,
                planned(&outcome, pod, destination),
            )?;
            *tally.entry(kind(&verdict)).or_default() += 1;
        }
    }
    Ok(())
}

/// No two gateways of a policy are the same node with the same addresses.
fn no_gateway_is_two(outcome: &Outcome) -> Result<(), String> {
    for (policy, became) in &outcome.policies {
        let mut seen = BTreeSet::new();
        for gateway in became.gateways.iter().filter_map(|g| g.gateway.as_ref()) {
            if !seen.insert((&gateway.node, &gateway.addresses)) {
                return Err(format!("{policy} has {} twice", gateway.node));
            }
        }
    }
    Ok(())
}

/// The model against the way of a packet through the compiled rules.
pub fn by_rules(world: &World, tally: &mut Tally) -> Result<(), String> {
    let outcome = plan(&world.known());
    let cluster = Cluster::new(world, &outcome)?;
    let mut chosen = Chosen::default();
    for destination in destinations(world) {
        for pod in &world.pods {
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            if !cluster.has(node) {
                continue;
            }
            for source in pod.ips().filter(|ip| ip.is_ipv4() == destination.is_ipv4()) {
                if is_anothers(world, pod, source) {
                    continue;
                }
                let verdict = expected(world, pod, destination);
                // As TCP, and as UDP to the tunnel's port, which is a pod's good right, but for its own node.
                let tunnels_port = Some(Numbers::default().port);
                let ports = [
                    None,
                    tunnels_port.filter(|_| !cluster.is_local(node, destination)),
                ];
                for udp_port in ports {
                    let packet = Packet::new(source, destination, udp_port);
                    let seen = match pod.spec.host_network {
                        true => cluster.sent_by_node(node, packet),
                        false => cluster.sent_by_pod(node, packet),
                    };
                    compare(&mut chosen, pod, destination, &verdict, seen)?;
                    *tally.entry(kind(&verdict)).or_default() += 1;
                }
            }
        }
    }
    Ok(())
}

/// Whether what the pod's node sends with an address is sent by another pod of that node.
fn is_anothers(world: &World, pod: &Pod, address: IpAddr) -> bool {
    let owner = owner(world, address).filter(|o| o.spec.node_name == pod.spec.node_name);
    !pod.spec.host_network && owner.is_some_and(|o| o.metadata.uid != pod.metadata.uid)
}

/// The gateway that each pod was seen to use of each policy.
#[derive(Default)]
struct Chosen(BTreeMap<(String, String), String>);

impl Chosen {
    /// A pod uses one gateway of a policy, for all destinations and both families.
    fn keeps(&mut self, pod: &Pod, capture: &Capture) -> Result<(), String> {
        let Capture::Egress { policy, gateway, .. } = capture else {
            return Ok(());
        };
        let before = self.0.insert((pod.key(), policy.clone()), gateway.clone());
        match before.filter(|b| b != gateway) {
            Some(other) => Err(format!("{} uses {gateway} and {other} of {policy}", pod.key())),
            None => Ok(()),
        }
    }
}

fn compare(
    chosen: &mut Chosen,
    pod: &Pod,
    destination: IpAddr,
    verdict: &Verdict,
    seen: Result<Option<Capture>, String>,
) -> Result<(), String> {
    let who = || format!("{} to {destination}: the model says {}", pod.key(), say(verdict));
    match (seen, verdict) {
        (Ok(None), Err(_)) => Ok(()),
        (Ok(Some(capture)), Ok(any)) if any.contains(&capture) => chosen.keeps(pod, &capture),
        (Ok(Some(capture)), _) => Err(format!("{}, seen is {capture}", who())),
        (Ok(None), Ok(_)) => Err(format!("{}, seen is no capture", who())),
        (Err(error), _) => Err(format!("{}, but {error}", who())),
    }
}

fn kind(verdict: &Verdict) -> &'static str {
    match verdict {
        Ok(captures) if captures.len() > 1 => "one of several",
        Ok(captures) => match captures[0] {
            Capture::Egress { ports: Some(_), .. } => "egress with ports",
            Capture::Egress { .. } => "egress",
            Capture::NodeAddress { .. } => "node address",
            Capture::Dropped { .. } => "dropped",
        },
        Err(NotCaptured::HostNetwork) => "host network",
        Err(NotCaptured::Ended) => "ended",
        Err(NotCaptured::NoNode) => "no node",
        Err(NotCaptured::NoAddress) => "no address",
        Err(NotCaptured::TakenOver) => "taken over",
        Err(NotCaptured::NeverRouted) => "never routed",
        Err(NotCaptured::InCluster) => "in the cluster",
        Err(NotCaptured::NoPolicy) => "no policy",
    }
}

/// Tries a property on so many random worlds, or on `PROPTEST_CASES`. A world on which it fails is shrunk and
/// printed as a file.
pub fn check<S>(worlds: S, cases: u32, property: fn(&World, &mut Tally) -> Result<(), String>) -> Tally
where
    S: Strategy<Value = World>,
{
    let mut config = Config {
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let cases = config.cases;
    let tally = RefCell::new(Tally::new());
    let mut runner = TestRunner::new(config);
    let result = runner.run(&worlds, |world| {
        property(&world, &mut tally.borrow_mut()).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, world)) => {
            panic!("{reason}\n\nTo keep the world, save it in e2e/testdata/worlds:\n# {reason}\n{world}")
        }
        Err(error) => panic!("{error}"),
    }
    let tally = tally.into_inner();
    println!(
        "{cases} worlds, {} verdicts: {tally:?}",
        tally.values().sum::<u64>()
    );
    let rare = [
        "egress",
        "one of several",
        "node address",
        "egress with ports",
        "dropped",
        "taken over",
        "in the cluster",
        "no policy",
    ];
    for kind in rare {
        assert!(
            cases < 100 || tally.contains_key(kind),
            "no world had a verdict of {kind:?}"
        );
    }
    tally
}
