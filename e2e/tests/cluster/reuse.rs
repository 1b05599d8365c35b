//! A pod's address after the pod: whether the datapath still holds it, and a next pod that is given it.

use std::{net::IpAddr, process::Command};

use egressnat_e2e::{
    error::{Context, Result},
    wait,
};
use serde_json::{Value, json};

use crate::{
    pod::Pod,
    scene::{DEADLINE, Scene},
};

/// Whether the node's plan or its kernel still holds the pod's entry.
pub fn is_held(scene: &Scene, pod: &Pod) -> Result<bool> {
    let text = scene
        .kubectl
        .run(["get", "egressplan", pod.node.name, "-o", "json"])?;
    let plan: Value = serde_json::from_str(&text).context(|| "read a plan".into())?;
    let name = format!("{}/{}", pod.namespace, pod.name);
    let mut pods = plan["spec"]["pods"].as_array().into_iter().flatten();
    let in_plan = pods.any(|pod| pod["name"] == name.as_str());
    let netns = scene.cluster.node(pod.node.name)?.netns()?;
    let table = netns.output(Command::new("nft").args(["list", "table", "inet", "egressnat"]));
    // Without any pod left the table itself is gone.
    let table = table.unwrap_or_default();
    let in_kernel = pod
        .addresses
        .map(|address| table.contains(&format!("{address} : ")));
    Ok(in_plan || in_kernel.contains(&true))
}

/// Runs an unselected pod that has the address of one that has ended.
pub fn run_with_address_of(scene: &Scene, ended: &Pod, name: &str) -> Result<Pod> {
    give_next(scene, ended)?;
    Pod::run(scene.kubectl, name, ended.node, json!({}), json!({}))
}

/// Has the next pod on the node get the addresses of one that has ended. host-local hands out addresses in
/// turn; it is told that the one before was the last.
pub fn give_next(scene: &Scene, ended: &Pod) -> Result<()> {
    let folder = "/var/lib/cni/networks/lab";
    let node = scene.cluster.node(ended.node.name)?;
    let sh = |script: String| node.output(Command::new("sh").args(["-c", &script]));
    let [v4, v6] = ended.addresses;
    wait::until("the runtime to give the address back", DEADLINE, || {
        sh(format!("! ls {folder}/{v4} {folder}/{v6} 2>/dev/null | grep ."))
    })?;
    let (before_v4, before_v6) = (before(v4), before(v6));
    sh(format!(
        "printf {before_v4} > {folder}/last_reserved_ip.0; printf {before_v6} > {folder}/last_reserved_ip.1"
    ))?;
    Ok(())
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() - 1).into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() - 1).into(),
    }
}
