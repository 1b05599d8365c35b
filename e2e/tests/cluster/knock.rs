//! Pods that knock at the echo server's closed ports from their first instruction on, each at its own: so that a packet
//! outside tells whose it is, whatever address it has.

use std::{collections::BTreeSet, time::Duration};

use egressnat_e2e::{
    capture::Capture,
    error::Result,
    netns::Netns,
    site::{ECHO, NodeSpec},
    wait,
};
use serde_json::{Value, json};

use crate::scene::Scene;

/// The first of the ports.
pub const FIRST_PORT: usize = 20_000;
/// The last of them.
pub const LAST_PORT: usize = FIRST_PORT + 99;
/// How long a pod may take to start, the kubelet's second try included, and to be let through.
const DEADLINE: Duration = Duration::from_secs(90);

/// A pod that knocks at this port.
pub fn pod(namespace: &str, name: &str, node: NodeSpec, labels: Value, port: usize) -> Value {
    let knock = format!(
        "while :; do nc -w 1 {} {port} < /dev/null; usleep 10000; done",
        ECHO.0
    );
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeName": node.name,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "toolbox",
                "image": "docker.io/egressnat-lab/toolbox:1",
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", knock],
            }],
        },
    })
}

/// Captures outside what knocks.
pub fn capture(scene: &Scene) -> Result<Capture> {
    let echo = Netns::open(&scene.cluster.site().netns("echo"))?;
    let knocks = format!("tcp dst portrange {FIRST_PORT}-{LAST_PORT} and tcp[tcpflags] & tcp-syn != 0");
    Capture::start(&echo, "eth0", &knocks)
}

/// Waits until a knock at this port is seen from this address, after so many others.
pub fn expect_seen(capture: &Capture, before: usize, port: usize, from: &str) -> Result<()> {
    wait::until(&format!("port {port} knocked at from {from}"), DEADLINE, || {
        let seen = sources(&capture.lines()[before..], port);
        match seen.contains(from) {
            true => Ok(()),
            false => Err(format!("{seen:?}")),
        }
    })
}

/// From where a port was knocked at.
pub fn sources(lines: &[String], port: usize) -> BTreeSet<String> {
    let seen = seen(lines).filter(|(at, _)| *at == port);
    seen.map(|(_, from)| from).collect()
}

/// The port and the source address of each packet, of lines like `... 172.18.0.40.1234 > 172.18.0.5.20003: ...`.
pub fn seen(lines: &[String]) -> impl Iterator<Item = (usize, String)> {
    lines.iter().filter_map(|line| {
        let (before, after) = line.split_once(" > 172")?;
        let from = before.split_whitespace().last()?;
        let (from, _) = from.rsplit_once('.')?;
        let port = after.split(':').next()?.rsplit('.').next()?;
        Some((port.parse().ok()?, from.to_owned()))
    })
}
