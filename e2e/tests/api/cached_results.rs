//! The real agent without the start gate: what the container runtime keeps on the node tells it of pods of which the API
//! server knows no address yet.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    node::{World, get, kernel, on_node_with},
    world::eventually,
};

/// An address of the node's pod range, of no pod that is there.
const ADDRESS: &str = "10.241.1.77";

/// A node's folders.
struct Folders(TempDir);

impl Folders {
    fn new() -> Self {
        let folders = Self(tempfile::tempdir().unwrap());
        fs::create_dir(folders.path("run")).unwrap();
        folders
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self) -> Vec<String> {
        let folder = |(flag, name): (&str, &str)| format!("--gate-{flag}={}", self.path(name).display());
        let folders = [
            ("run-folder", "run"),
            ("state-folder", "state"),
            ("cni-programs", "bin"),
            ("cni-configurations", "net.d"),
            ("cni-cache", "cache"),
        ];
        let folders = folders.into_iter().map(folder);
        ["--gate".to_owned()].into_iter().chain(folders).collect()
    }

    fn result(&self, container: &str) -> PathBuf {
        self.path("cache/results").join(format!("lab-{container}-eth0"))
    }

    /// As libcni does it after the last plugin's ADD.
    fn write(&self, container: &str, uid: &str, addresses: &[IpAddr]) {
        let file = self.result(container);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, cached(container, uid, addresses)).unwrap();
    }
}

fn cached(container: &str, uid: &str, addresses: &[IpAddr]) -> String {
    let ips: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"address": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}))
        .collect();
    let cached = json!({
        "kind": "cniCacheV1",
        "containerId": container,
        "ifName": "eth0",
        "networkName": "lab",
        "cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "pod"], ["K8S_POD_UID", uid]],
        "result": {"cniVersion": "1.0.0", "ips": ips},
    });
    cached.to_string()
}

/// A plan that selects pods of these uids, without a gate and without the pods' addresses.
async fn write_plan(world: &World<'_>, uids: &[&str]) {
    let mut spec = world.spec();
    let pod = |uid: &&str| json!({"uid": uid, "name": format!("default/{uid}"), "ips": [], "profile": 1});
    spec["pods"] = uids.iter().map(pod).collect();
    spec["gate"] = json!({"open": true});
    world.write(spec).await;
    world.says("True", "Programmed").await;
}

fn has(world: &World<'_>, address: IpAddr) -> bool {
    kernel(&world.topology.source.netns).contains(&format!("{address} :"))
}

async fn expect(world: &World<'_>, address: IpAddr, there: bool) {
    let what = format!("{address} {}", if there { "in the kernel" } else { "to go" });
    eventually(&what, async || (has(world, address) == there).then_some(())).await;
}

#[test]
fn a_pod_is_programmed_when_the_runtime_has_cached_its_addresses() {
    let folders = Folders::new();
    on_node_with(folders.flags(), async |mut world| {
        write_plan(&world, &["u1", "u2"]).await;
        let addresses = world.topology.source.pods[0].address.both();
        let gone: IpAddr = ADDRESS.parse().unwrap();
        assert!(!has(&world, addresses[0]) && !has(&world, gone));

        // There was no folder.
        let began = Instant::now();
        folders.write("c1", "u1", &addresses);
        while !addresses.iter().all(|ip| has(&world, *ip)) {
            assert!(began.elapsed() < Duration::from_secs(10), "in vain");
            sleep(Duration::from_millis(1)).await;
        }
        println!(
            "from the file to the element, and to having seen it: {:?}",
            began.elapsed()
        );
        folders.write("c2", "u2", &[gone]);
        expect(&world, gone, true).await;

        world.restart_agent().await;
        eventually("the next agent", async || {
            get("/readyz").filter(|answer| answer.contains("200 OK"))
        })
        .await;
        for address in [addresses[0], addresses[1], gone] {
            assert!(has(&world, address), "{address} after a restart");
        }

        // DEL: one pod's link is there still, the other has none.
        for container in ["c1", "c2"] {
            fs::remove_file(folders.result(container)).unwrap();
        }
        expect(&world, gone, false).await;
        assert!(has(&world, addresses[0]), "its network is there");
    });
}

#[test]
fn what_is_no_cached_result_does_no_harm() {
    let folders = Folders::new();
    on_node_with(folders.flags(), async |world| {
        write_plan(&world, &["u1", "u2"]).await;
        let bad: IpAddr = ADDRESS.parse().unwrap();
        let good = world.topology.source.pods[0].address.both();
        folders.write("own", "u3", &[bad]);
        fs::write(folders.path("elsewhere"), cached("link", "u1", &[bad])).unwrap();
        symlink(folders.path("elsewhere"), folders.result("link")).unwrap();
        let huge = cached("huge", "u1", &[bad]) + &" ".repeat(1 << 20);
        fs::write(folders.result("huge"), huge).unwrap();
        fs::write(folders.result("garbage"), [0; 64]).unwrap();
        let text = cached("half", "u1", &[bad]);
        fs::write(folders.result("half"), &text[..text.len() - 1]).unwrap();
        let other = cached("kind", "u1", &[bad]).replace("cniCacheV1", "cniCacheV2");
        fs::write(folders.result("kind"), other).unwrap();
        // They have been looked at by then, and the agent lives.
        folders.write("good", "u2", &good);
        expect(&world, good[0], true).await;
        assert!(!has(&world, bad));
        // So it would have been seen.
        folders.write("true", "u1", &[bad]);
        expect(&world, bad, true).await;
    });
}
