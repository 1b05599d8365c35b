//! Pods that are deleted by force and send on: what the outside sees of them, to the last packet.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use egressnat_e2e::{
    capture::Capture,
    cluster::Cluster,
    error::Result,
    images,
    netns::Netns,
    site::{ECHO, NodeSpec},
    wait,
};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test,
    scene::{DEADLINE, EGRESS, Scene, WORKER},
};

pub const TESTS: &[Test] = &[
    (
        "last_packet::of_a_pod_that_is_deleted_by_force_has_the_policys_address",
        of_a_pod_that_is_deleted_by_force_has_the_policys_address,
    ),
    (
        "last_packet::of_a_pod_on_a_node_that_is_cut_off_has_the_policys_address",
        of_a_pod_on_a_node_that_is_cut_off_has_the_policys_address,
    ),
];

/// Where the pods are: their gateway is another node.
const NODE: NodeSpec = WORKER;
/// So many packets come from a pod that the API server has not any more, before its node hears of that.
const MEANWHILE: usize = 500;
/// Without a way to the API server.
const CUT_OFF: &str = "table inet cut {
    chain output { type filter hook output priority 0; tcp dport 6443 drop; }
    chain input { type filter hook input priority 0; tcp sport 6443 drop; }
}";
/// How long nothing comes any more from a pod that is gone for good: it sends every 10 ms.
const SILENCE: Duration = Duration::from_secs(2);
/// The kubelet kills what ignores SIGTERM after the pod's grace period.
const END: Duration = Duration::from_secs(90);

/// The pod of its own label shows that there is something to be seen: packets that come when the API server has it no
/// more, with its node's addresses.
fn of_a_pod_that_is_deleted_by_force_has_the_policys_address(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = prepared(cluster)?;
    let result = [false, true].into_iter().try_for_each(|gate| {
        cluster.install_chart_with(&[&format!("startGate.enabled={gate}")])?;
        cluster.wait_for_gate(gate)?;
        let what = format!("startGate.enabled={gate}");
        expect_last(
            &what,
            Sending::start(&scene, "none", 21_001)?.delete()?.end()?,
            own(),
        )?;
        // Without another one, its policy leaves the node's plan with it.
        let other = Sending::start(&scene, "chosen", 21_002)?;
        expect_last(
            &what,
            Sending::start(&scene, "chosen", 21_003)?.delete()?.end()?,
            egress(),
        )?;
        let last = other.delete()?.end()?;
        let wrong: Vec<&String> = last.keys().filter(|source| !egress().contains(source)).collect();
        assert!(wrong.is_empty(), "{what}, the last of its policy: {last:?}");
        Ok::<(), Failed>(())
    });
    cluster.install_chart()?;
    scene.delete_policy()?;
    result
}

/// Neither its kubelet nor its agent hears of it before the node is back.
fn of_a_pod_on_a_node_that_is_cut_off_has_the_policys_address(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = prepared(cluster)?;
    // Without it, the policy leaves the node's plan with the pod.
    let other = Sending::start(&scene, "chosen", 21_004)?;
    let pod = Sending::start(&scene, "chosen", 21_005)?;
    let node = cluster.node(NODE.name)?.netns()?;
    node.nft(CUT_OFF)?;
    let gone = pod.delete().and_then(|pod| pod.wait_for(MEANWHILE).map(|()| pod));
    node.output(Command::new("nft").args(["delete", "table", "inet", "cut"]))?;
    let result = expect_last("a node that was cut off", gone?.end()?, egress());
    other.delete()?.end()?;
    scene.delete_policy()?;
    result
}

fn prepared(cluster: &Cluster) -> std::result::Result<Scene<'_>, Failed> {
    let scene = Scene::new(cluster)?;
    let site = cluster.site();
    let sender = images::build_sender(Path::new(env!("CARGO_BIN_EXE_sender")), &site.path("images"))?;
    cluster.load_images(&[sender])?;
    scene.apply_policy(json!({}))?;
    Ok(scene)
}

fn egress() -> [String; 2] {
    EGRESS.map(str::to_owned)
}

fn own() -> [String; 2] {
    [NODE.v4.to_string(), NODE.v6.to_string()]
}

/// Packets by their source: of these, in both families, and of nobody else.
fn expect_last(
    what: &str,
    seen: BTreeMap<String, usize>,
    expected: [String; 2],
) -> std::result::Result<(), Failed> {
    println!("{what}: {seen:?}");
    let sources: Vec<&String> = seen.keys().collect();
    let mut expected: Vec<&String> = expected.iter().collect();
    expected.sort();
    match sources == expected {
        true => Ok(()),
        false => Err(format!("{what}: {seen:?}, not {expected:?}").into()),
    }
}

/// A pod that sends all the time and ignores SIGTERM, and what is seen of it. Its port is its own.
struct Sending<'a> {
    scene: &'a Scene<'a>,
    name: String,
    capture: Capture,
    /// How many of its packets had been seen when the API server had it no more.
    before: usize,
}

impl<'a> Sending<'a> {
    /// Returns when it has been seen in both families.
    fn start(scene: &'a Scene<'a>, label: &str, port: u16) -> Result<Self> {
        let name = format!("sends-to-{port}");
        let echo = Netns::open(&scene.cluster.site().netns("echo"))?;
        let capture = Capture::start(&echo, "eth0", &format!("dst port {port}"))?;
        let (v4, v6) = (ECHO.0.to_string(), ECHO.1.to_string());
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"egress": label}},
            "spec": {
                "nodeName": NODE.name,
                "terminationGracePeriodSeconds": 5,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "sender",
                    "image": images::SENDER,
                    "imagePullPolicy": "Never",
                    "args": [name, port.to_string(), "ignore", v4, v6],
                }],
            },
        });
        scene.kubectl.apply(&pod.to_string())?;
        let seen = |address: &str| capture.wait_for("a packet", DEADLINE, |line| line.contains(address));
        for address in if label == "chosen" { egress() } else { own() } {
            seen(&format!("{address}."))?;
        }
        Ok(Self {
            scene,
            name,
            capture,
            before: 0,
        })
    }

    /// By force, and at once. kubectl returns when the API server has it no more.
    fn delete(mut self) -> Result<Self> {
        let delete = [
            "-n",
            "default",
            "delete",
            "pod",
            &self.name,
            "--force",
            "--grace-period=0",
        ];
        self.scene.kubectl.run(delete)?;
        self.before = self.capture.lines().len();
        Ok(self)
    }

    /// Waits for so many more packets.
    fn wait_for(&self, more: usize) -> Result<()> {
        wait::until("packets of a pod that is gone", DEADLINE, || {
            match self.capture.lines().len() - self.before {
                seen if seen >= more => Ok(()),
                seen => Err(seen.to_string()),
            }
        })
    }

    /// Waits until it is silent. Returns what came since the API server had it no more, by source.
    fn end(self) -> Result<BTreeMap<String, usize>> {
        let mut last = (self.before, Instant::now());
        wait::until("the pod to be silent", END, || {
            let seen = self.capture.lines().len();
            if seen != last.0 {
                last = (seen, Instant::now());
            }
            (last.1.elapsed() >= SILENCE)
                .then_some(())
                .ok_or(format!("{seen} packets"))
        })?;
        let mut sources = BTreeMap::new();
        for line in &self.capture.stop()?[self.before..] {
            *sources.entry(source(line)).or_default() += 1;
        }
        Ok(sources)
    }
}

/// Of a line like `... 172.18.0.40.1234 > 172.18.0.5.21001: ...`.
fn source(line: &str) -> String {
    let before = line.rsplit(" > ").nth(1).unwrap_or(line);
    let word = before.split_whitespace().next_back().unwrap_or(before);
    let address = word.rsplit_once('.').map_or(word, |(address, _)| address);
    address.to_owned()
}
