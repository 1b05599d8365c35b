//! Pods of the cluster, and what is seen of them.

use std::{fmt, net::IpAddr};

use egressnat_e2e::{
    error::{Context, Result},
    kubectl::Kubectl,
    site::{NODES, NodeSpec},
};
use serde_json::{Value, json};

use crate::scene::{Seen, echo_urls};

/// A running pod.
#[derive(Debug, Clone)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub node: NodeSpec,
    /// IPv4 and IPv6.
    pub addresses: [IpAddr; 2],
}

impl fmt::Display for Pod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}/{} on {}",
            self.namespace, self.name, self.node.name
        )
    }
}

impl Pod {
    /// Starts a pod of namespace `default` on a node, with these labels and other fields of its spec, and
    /// waits until it runs. One of that name that is there is replaced.
    pub fn run(kubectl: &Kubectl, name: &str, node: NodeSpec, labels: Value, fields: Value) -> Result<Self> {
        delete(kubectl, name)?;
        let mut spec = json!({
            "nodeName": node.name,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "toolbox",
                "image": "docker.io/egressnat-lab/toolbox:1",
                "imagePullPolicy": "Never",
            }],
        });
        for (field, value) in fields.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": spec,
        });
        kubectl.apply(&pod.to_string())?;
        let ready = ["wait", "--for=condition=Ready", "--timeout=30s", "pod", name];
        kubectl.run(["-n", "default"].into_iter().chain(ready))?;
        let text = kubectl.run(["-n", "default", "get", "pod", name, "-o", "json"])?;
        Ok(parse(&read(&text)?))
    }

    /// Runs a shell script in the pod; returns what it prints.
    pub fn sh(&self, kubectl: &Kubectl, script: &str) -> Result<String> {
        kubectl.run([
            "-n",
            &self.namespace,
            "exec",
            &self.name,
            "--",
            "sh",
            "-c",
            script,
        ])
    }

    /// What each URL answers to the pod: the address that the server sees, or nothing.
    pub fn ask(&self, kubectl: &Kubectl, urls: &[String]) -> Result<Vec<Option<String>>> {
        // Debian's busybox wget crashes with -T; `timeout` bounds it instead. A URL that answers with two
        // lines or none would shift the others: each answer is a line.
        let script = format!(
            "for url in {}; do echo $(timeout 2 wget -q -O - $url 2>/dev/null); done",
            urls.iter().map(|url| format!("'{url}' ")).collect::<String>()
        );
        let answers = self.sh(kubectl, &script)?;
        Ok(answers.lines().map(address).collect())
    }

    /// What the echo server sees; an error of the asking counts as no answer.
    pub fn seen(&self, kubectl: &Kubectl) -> Seen {
        let answers = self.ask(kubectl, &echo_urls()).unwrap_or_default();
        answers.try_into().unwrap_or_default()
    }
}

/// Deletes a pod of namespace `default`, if it is there, and waits until it is gone.
pub fn delete(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.run(["-n", "default", "delete", "pod", name, "--ignore-not-found"])?;
    Ok(())
}

/// The running pods with a label that have their addresses.
pub fn pods(kubectl: &Kubectl, namespace: &str, label: &str) -> Result<Vec<Pod>> {
    let running = "--field-selector=status.phase=Running";
    let text = kubectl.run(["-n", namespace, "get", "pod", "-l", label, running, "-o", "json"])?;
    let list = read(&text)?;
    Ok(list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["status"]["podIPs"][1].is_object())
        .map(parse)
        .collect())
}

fn parse(pod: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = NODES
        .into_iter()
        .find(|node| pod["spec"]["nodeName"] == node.name);
    let address = |index: usize| text(&pod["status"]["podIPs"][index]["ip"]);
    Pod {
        namespace: text(&pod["metadata"]["namespace"]),
        name: text(&pod["metadata"]["name"]),
        node: node.expect("pods run on nodes"),
        addresses: [address(0), address(1)].map(|ip| ip.parse().expect("pods have two addresses")),
    }
}

fn read(text: &str) -> Result<Value> {
    serde_json::from_str(text).context(|| "read the answer of kubectl".into())
}

/// busybox httpd writes `[::ffff:192.0.2.1]`, the echo server `192.0.2.1`.
fn address(line: &str) -> Option<String> {
    let bare = line.trim().trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = bare.parse().ok()?;
    Some(address.to_canonical().to_string())
}
