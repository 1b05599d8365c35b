//! The walk-through: what the external echo server sees of each net-tshoot pod, without a policy, with one,
//! and after it.

use std::{collections::BTreeMap, fmt, net::IpAddr, thread, time::Duration};

use serde_json::Value;

use crate::{
    error::{Context, Error, Result},
    kubectl::Kubectl,
    wait,
};

/// The first policy of the README: IPv4 only.
pub const POLICY: &str = include_str!("../manifests/policy.yaml");
/// The same policy for both families.
pub const POLICY_DUAL: &str = include_str!("../manifests/policy-dual.yaml");

/// How long a change of policy may take to show outside.
const EFFECT_DEADLINE: Duration = Duration::from_secs(30);
const NAMES: [&str; 2] = ["echo4", "echo6"];

/// One pod, its node's addresses, and the addresses that the echo server saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Name of the pod.
    pub pod: String,
    /// Name of its node.
    pub node: String,
    /// The node's own addresses, IPv4 and IPv6.
    pub own: [String; 2],
    /// What the server saw by IPv4 and by IPv6, or why there was no answer.
    pub seen: [std::result::Result<String, String>; 2],
}

/// Sightings of all pods, sorted by node; `Display` is the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sightings(pub Vec<Sighting>);

/// The addresses that a pod is expected to leave with, IPv4 and IPv6; `None` for its node's own.
pub type Expected<'a> = [Option<&'a str>; 2];

impl Sightings {
    /// Asks the echo server from every running net-tshoot pod, all at once.
    ///
    /// # Errors
    /// When the pods or nodes cannot be listed.
    pub fn take(kubectl: &Kubectl) -> Result<Self> {
        let nodes = node_addresses(kubectl)?;
        let pods = pods(kubectl)?;
        let mut sightings: Vec<Sighting> = thread::scope(|scope| {
            let asked: Vec<_> = pods
                .into_iter()
                .map(|(pod, node)| {
                    let own = nodes.get(&node).cloned().unwrap_or_default();
                    scope.spawn(move || Sighting {
                        seen: NAMES.map(|name| ask(kubectl, &pod, name)),
                        pod,
                        node,
                        own,
                    })
                })
                .collect();
            asked
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        sightings.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(Self(sightings))
    }

    /// Whether every pod was seen with the expected addresses. No pod at all is not what anybody expects.
    #[must_use]
    pub fn are(&self, expected: Expected) -> bool {
        !self.0.is_empty() && self.0.iter().all(|sighting| sighting.is(expected))
    }
}

impl Sighting {
    fn is(&self, expected: Expected) -> bool {
        let each = self.seen.iter().zip(&self.own).zip(expected);
        each.into_iter()
            .all(|((seen, own), expected)| seen.as_deref() == Ok(expected.unwrap_or(own)))
    }
}

impl fmt::Display for Sightings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "  {:<18} {:<25} {:<16} SEEN BY IPv6",
            "POD", "ON NODE", "SEEN BY IPv4"
        )?;
        for Sighting {
            pod,
            node,
            own: _,
            seen: [v4, v6],
        } in &self.0
        {
            let [v4, v6] = [v4, v6].map(|seen| seen.as_ref().unwrap_or_else(|error| error));
            writeln!(formatter, "  {pod:<18} {node:<25} {v4:<16} {v6}")?;
        }
        Ok(())
    }
}

/// Waits until every pod is seen with the expected addresses; returns what was seen.
///
/// # Errors
/// After half a minute, with what was seen last.
pub fn expect(kubectl: &Kubectl, what: &str, expected: Expected) -> Result<Sightings> {
    wait::until(what, EFFECT_DEADLINE, || {
        let sightings = Sightings::take(kubectl).map_err(|error| error.to_string())?;
        if sightings.are(expected) {
            Ok(sightings)
        } else {
            Err(format!("\n{sightings}"))
        }
    })
}

/// Removes the policy, if it is there.
///
/// # Errors
/// When the API server refuses.
pub fn remove_policy(kubectl: &Kubectl) -> Result<()> {
    kubectl.run([
        "delete",
        "egressnatpolicy",
        "default-via-control-plane",
        "--ignore-not-found",
    ])?;
    Ok(())
}

/// Walks through: no policy, IPv4 policy, dual-stack policy, no policy; passes each to `show`, and ends at the
/// first that is not as it should be.
///
/// # Errors
/// When a step does not show what it should, with what it showed.
pub fn run(kubectl: &Kubectl, show: impl Fn(&str, &Sightings)) -> Result<()> {
    let gateway = node_addresses(kubectl)?;
    let [v4, v6] = gateway
        .get(crate::site::CONTROL_PLANE.name)
        .cloned()
        .unwrap_or_default();
    let step = |what: &str, expected: Expected| -> Result<()> {
        let sightings = expect(kubectl, what, expected)?;
        show(what, &sightings);
        Ok(())
    };
    remove_policy(kubectl)?;
    step(
        "without a policy, each pod is seen with its own node's address",
        [None, None],
    )?;
    kubectl.apply(POLICY)?;
    step(
        "with the IPv4 policy, all are seen with the control plane's IPv4 address",
        [Some(&v4), None],
    )?;
    kubectl.apply(POLICY_DUAL)?;
    step(
        "with the dual-stack policy, with both of its addresses",
        [Some(&v4), Some(&v6)],
    )?;
    remove_policy(kubectl)?;
    step(
        "after the policy, each with its own node's address again",
        [None, None],
    )
}

fn ask(kubectl: &Kubectl, pod: &str, name: &str) -> std::result::Result<String, String> {
    // Debian's busybox wget crashes with -T; `timeout` bounds it instead.
    let answer = kubectl.run([
        "-n", "default", "exec", pod, "--", "timeout", "3", "wget", "-q", "-O", "-", name,
    ]);
    match answer {
        Ok(address) => Ok(address.trim().to_owned()),
        Err(Error::Command { output, .. }) => {
            let first = output
                .lines()
                .find(|line| !line.starts_with("command terminated"));
            Err(format!("no answer {}", first.unwrap_or_default())
                .trim_end()
                .to_owned())
        }
        Err(other) => Err(other.to_string()),
    }
}

fn pods(kubectl: &Kubectl) -> Result<Vec<(String, String)>> {
    let running = "--field-selector=status.phase=Running";
    let list = get(
        kubectl,
        &["-n", "default", "get", "pod", "-l", "name=net-tshoot", running],
    )?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items(&list)
        .map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"])))
        .collect())
}

/// Each node's internal addresses, IPv4 and IPv6; empty where it has none.
fn node_addresses(kubectl: &Kubectl) -> Result<BTreeMap<String, [String; 2]>> {
    let list = get(kubectl, &["get", "node"])?;
    let nodes = items(&list).map(|node| {
        let addresses: Vec<IpAddr> = node["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect();
        let first = |wanted: fn(&&IpAddr) -> bool| addresses.iter().find(wanted).map(IpAddr::to_string);
        let own = [
            first(|address| address.is_ipv4()),
            first(|address| address.is_ipv6()),
        ];
        (
            node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            own.map(Option::unwrap_or_default),
        )
    });
    Ok(nodes.collect())
}

fn get(kubectl: &Kubectl, args: &[&str]) -> Result<Value> {
    let text = kubectl.run(args.iter().chain(&["-o", "json"]))?;
    serde_json::from_str(&text).context(|| format!("read the answer of kubectl {}", args.join(" ")))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(seen: [std::result::Result<String, String>; 2]) -> Sighting {
        let own = ["172.18.0.2".to_owned(), "fd00:172:18::2".to_owned()];
        Sighting {
            pod: "net-tshoot-x".into(),
            node: "k8s-guide-worker".into(),
            own,
            seen,
        }
    }

    #[test]
    fn expects_the_own_node_or_the_named_address() {
        let own = Sightings(vec![sighting([
            Ok("172.18.0.2".into()),
            Ok("fd00:172:18::2".into()),
        ])]);
        assert!(own.are([None, None]));
        assert!(!own.are([Some("172.18.0.3"), None]));
        let gateway = Sightings(vec![sighting([
            Ok("172.18.0.3".into()),
            Ok("fd00:172:18::2".into()),
        ])]);
        assert!(gateway.are([Some("172.18.0.3"), None]));
        assert!(!gateway.are([None, None]));
    }

    #[test]
    fn no_answer_and_no_pod_are_never_as_expected() {
        let silent = Sightings(vec![sighting([
            Err("no answer".into()),
            Ok("fd00:172:18::2".into()),
        ])]);
        assert!(!silent.are([None, None]));
        assert!(!Sightings(Vec::new()).are([None, None]));
    }
}
