//! Pods that are gone from the API server, and send on until their network is gone.

use std::{
    net::IpAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use egressnat_agent::{agent::Report, owned::Drop as DropReason};
use egressnat_crds::{EgressPlanSpec, plan::Gate};
use egressnat_e2e::{
    topology::{Dual, FAMILIES, Node, Options, Packet, Pod, SEGMENT, Tap, Topology, in_pod_range},
    wait,
};

use crate::{
    agent::Agent,
    lab::{Lab, ok},
    plan::Policy,
    sender::{Sender, is_senders},
};

const DEADLINE: Duration = Duration::from_secs(10);
/// So many packets of each family are looked at in each state.
const PACKETS: usize = 200;
/// From the end of the pod's network to that of its entry, where its link was known: less than it takes to ask for it.
const SOON: Duration = Duration::from_millis(2900);

/// How the CNI connects pods.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Each has a route of its own to its own link.
    Ptp,
    /// All are on one bridge.
    Bridge,
}

const SHAPES: [Shape; 2] = [Shape::Ptp, Shape::Bridge];

impl Shape {
    /// Connects a pod anew, by a link of this name.
    fn connect(self, node: &Node, pod: &Pod, link: &str) {
        let (Dual { v4, v6 }, router) = (pod.address, in_pod_range(node.number, 1).v4);
        ok(node.netns.ip(&format!(
            "link add {link} type veth peer name eth0 netns {}\n\
             link set {link} addrgenmode none up",
            pod.netns.path().display()
        )));
        let towards = match self {
            Self::Ptp => link,
            Self::Bridge => {
                ok(node.netns.ip(&format!("link set {link} master cni0")));
                "cni0"
            }
        };
        ok(node.netns.ip(&format!(
            "addr replace {router}/32 dev {towards}\n\
             addr replace fe80::1/64 dev {towards} nodad\n\
             route replace {v4}/32 dev {towards}\n\
             route replace {v6}/128 dev {towards}"
        )));
        ok(pod.netns.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             route add {router}/32 dev eth0\n\
             route add 0.0.0.0/0 via {router}\n\
             route add ::/0 via fe80::1 dev eth0"
        )));
    }
}

/// A pod that sends all the time, of a node whose pods are connected so.
struct Scene {
    lab: Lab,
    shape: Shape,
    /// What the agent keeps.
    folder: tempfile::TempDir,
    tap: Tap,
    _sender: Sender,
}

impl Scene {
    /// The pod is unselected: the probe sees it with its node's address.
    fn new(shape: Shape) -> Self {
        let mut lab = Lab::new(Options::default());
        let folder = ok(tempfile::tempdir());
        lab.source.stop();
        lab.source = start(&lab.topology.source, folder.path());
        let node = &lab.topology.source;
        ok(node
            .netns
            .ip("link add cni0 type bridge mcast_snooping 0\nlink set cni0 addrgenmode none up"));
        ok(node.netns.ip("link del pod0"));
        shape.connect(node, &node.pods[0], "first");
        let mut scene = Self {
            shape,
            folder,
            tap: ok(lab.topology.tap()),
            _sender: Sender::start(&node.pods[0]),
            lab,
        };
        scene.expect("as any other pod", scene.own());
        scene
    }

    fn topology(&self) -> &Topology {
        &self.lab.topology
    }

    /// The addresses of the pod's node.
    fn own(&self) -> Dual {
        self.topology().source.address
    }

    /// The policy's addresses.
    fn egress(&self) -> Dual {
        self.topology().gateway.egress
    }

    /// The source node's plan for a policy that selects these of its pods. `gate` is told of those that none does.
    fn plan(&self, selected: &[usize], unselected: &[usize]) -> EgressPlanSpec {
        let source = &self.topology().source;
        let names = unselected.iter().map(|pod| source.pods[*pod].name.clone());
        EgressPlanSpec {
            gate: Some(Gate {
                open: true,
                unselected: names.collect(),
                ..Gate::default()
            }),
            ..self.lab.plan(source, &[self.policy(selected)])
        }
    }

    /// Brings both nodes in step: these pods are selected, the sending one among them.
    fn select(&mut self, pods: &[usize]) {
        self.bring_in_step(pods);
        self.expect("the policy's", self.egress());
    }

    fn bring_in_step(&self, pods: &[usize]) {
        let plan = self.lab.plan(&self.topology().gateway, &[self.policy(pods)]);
        ok(self.lab.gateway.sync(Some(&plan)));
        self.sync(&self.plan(pods, &[]));
    }

    fn policy(&self, selected: &[usize]) -> Policy {
        let Topology { source, gateway, .. } = self.topology();
        let policy = Policy::new(7).to(&SEGMENT).via(gateway, gateway.egress);
        let pods = selected.iter().map(|pod| &source.pods[*pod]);
        pods.fold(policy, Policy::select)
    }

    fn sync(&self, plan: &EgressPlanSpec) -> Report {
        ok(self.lab.source.sync(Some(plan)))
    }

    /// Whatever the pod sends from now on, the outside sees it with these addresses, and sees it.
    #[track_caller]
    fn expect(&mut self, what: &str, expected: Dual) {
        ok(self.tap.take());
        let mut seen: Vec<Packet> = Vec::new();
        ok(wait::until(what, DEADLINE, || {
            seen.extend(ok(self.tap.take()).into_iter().filter(is_senders));
            let count = |family| seen.iter().filter(|p| p.source == expected.of(family)).count();
            let counts = FAMILIES.map(count);
            counts
                .iter()
                .all(|c| *c >= PACKETS)
                .then_some(())
                .ok_or(format!("{counts:?}"))
        }));
        assert_all(what, self.shape, &seen, expected);
    }

    /// The pod's network goes, as with CNI DEL, under the eyes of the agent. Returns when its entry was gone.
    fn end_network(&self, plan: &EgressPlanSpec) -> Duration {
        let watch = self.lab.source.look_after(plan);
        let ended = Instant::now();
        ok(self.topology().source.netns.ip("link del first"));
        let released = wait::until("the pod's entry to go", DEADLINE, || {
            let released = |(at, report): &(Instant, Result<Report, _>)| {
                let free = report.as_ref().is_ok_and(|report| report.departed == 0);
                (*at > ended && free).then_some(*at)
            };
            watch
                .with(|told| told.iter().find_map(released))
                .ok_or("it is still there")
        });
        ok(released) - ended
    }

    fn is_in_kernel(&self) -> bool {
        let list = self.topology().source.netns.output(Command::new("nft").args([
            "list",
            "table",
            "inet",
            "egressnat",
        ]));
        let (text, pod) = (ok(list), &self.topology().source.pods[0]);
        let found = pod.address.both().map(|ip| text.contains(&format!("{ip} : ")));
        assert_eq!(found[0], found[1], "{text}");
        found[0]
    }
}

fn start(node: &Node, folder: &Path) -> Agent {
    let folder = folder.to_str().expect("a path in UTF-8");
    Agent::start(node, &["--gate", "--gate-run-folder", folder])
}

#[track_caller]
fn assert_all(what: &str, shape: Shape, seen: &[Packet], expected: Dual) {
    let expected: [IpAddr; 2] = expected.both();
    let wrong: Vec<&Packet> = seen.iter().filter(|p| !expected.contains(&p.source)).collect();
    assert!(
        wrong.is_empty(),
        "{shape:?}, {what}: {} of {}: {:#?}",
        wrong.len(),
        seen.len(),
        wrong[0]
    );
}

#[test]
fn a_pod_that_is_gone_keeps_its_verdict_until_its_network_is_gone_and_no_longer() {
    for shape in SHAPES {
        let mut scene = Scene::new(shape);
        scene.select(&[0, 1]);
        let gone = scene.plan(&[1], &[]);
        assert_eq!(scene.sync(&gone).departed, 1);
        scene.expect("gone, and still there", scene.egress());

        scene.lab.source.stop();
        scene.lab.source = start(&scene.topology().source, scene.folder.path());
        assert_eq!(scene.sync(&gone).departed, 1, "{shape:?}: after a restart");
        scene.expect("after a restart", scene.egress());

        assert!(scene.is_in_kernel());
        let took = scene.end_network(&gone);
        assert!(took < SOON, "{shape:?}: {took:?}");
        assert!(!scene.is_in_kernel());

        let node = &scene.topology().source;
        shape.connect(node, &node.pods[0], "second");
        scene.expect("another pod with its address", scene.own());
        assert_eq!(scene.sync(&gone).departed, 0);
    }
}

/// Its policy has no other pod on the node, and is gone from the plan with it.
#[test]
fn a_pod_whose_policy_is_gone_as_well_sends_nothing() {
    for shape in SHAPES {
        let mut scene = Scene::new(shape);
        scene.select(&[0]);
        let gone = scene.plan(&[], &[]);
        assert_eq!(scene.sync(&gone).departed, 1);
        ok(scene.tap.take());
        let source = &scene.lab.source;
        ok(wait::until("packets to be dropped", DEADLINE, || {
            let dropped = source.dropped(DropReason::NoGateway);
            (dropped >= 2 * PACKETS as u64)
                .then_some(())
                .ok_or(dropped.to_string())
        }));
        let seen: Vec<Packet> = ok(scene.tap.take()).into_iter().filter(is_senders).collect();
        assert!(seen.is_empty(), "{shape:?}: {seen:#?}");
        let took = scene.end_network(&gone);
        assert!(took < SOON, "{shape:?}: {took:?}");
    }
}

#[test]
fn a_pod_that_is_still_there_and_not_selected_any_more_is_released_at_once() {
    let mut scene = Scene::new(Shape::Ptp);
    scene.select(&[0, 1]);
    assert_eq!(scene.sync(&scene.plan(&[1], &[0])).departed, 0);
    scene.expect("as any other pod", scene.own());
}

/// Its link was not known when it left the plan: the kernel asks who has its addresses.
#[test]
fn a_pod_that_has_never_been_seen_is_asked_for_and_released_only_when_it_is_silent() {
    let mut scene = Scene::new(Shape::Bridge);
    let gone = scene.plan(&[1], &[]);
    ok(scene.topology().source.netns.ip("link del first"));
    scene.bring_in_step(&[0, 1]);
    let node = &scene.topology().source;
    scene.shape.connect(node, &node.pods[0], "first");
    assert_eq!(scene.sync(&gone).departed, 1);
    scene.expect("it has answered", scene.egress());
    assert_eq!(scene.sync(&gone).departed, 1, "and its link is known");
    let took = scene.end_network(&gone);
    assert!(took < SOON, "{took:?}");

    scene.bring_in_step(&[0, 1]);
    assert_eq!(scene.sync(&gone).departed, 1);
    let watch = scene.lab.source.look_after(&gone);
    ok(wait::until("the pod's entry to go", DEADLINE, || {
        let free = |(_, report): &(Instant, Result<Report, _>)| {
            report.as_ref().is_ok_and(|report| report.departed == 0)
        };
        watch
            .with(|told| told.iter().any(free))
            .then_some(())
            .ok_or("it is still there")
    }));
    drop(watch);
    assert!(!scene.is_in_kernel());
}
