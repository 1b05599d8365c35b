//! The real agent without the start gate: what the container runtime keeps on the node tells it of pods of which the API
//! server knows no address yet.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use egressnat_e2e::runtime_folders::{RuntimeFolders, RuntimePod};
use serde_json::json;
use tokio::time::sleep;

use super::{
    node::{World, get, kernel, on_node_with},
    world::eventually,
};

/// An address of the node's pod range, of no pod that is there.
const ADDRESS: &str = "10.241.1.77";

fn pod<'a>(container: &'a str, uid: &'a str, addresses: &'a [IpAddr]) -> RuntimePod<'a> {
    RuntimePod {
        container,
        uid,
        name: "pod",
        addresses,
    }
}

/// As libcni does it after the last plugin's ADD.
fn write(folders: &RuntimeFolders, container: &str, uid: &str, addresses: &[IpAddr]) {
    folders.cache(pod(container, uid, addresses)).unwrap();
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
    let folders = RuntimeFolders::new().unwrap();
    on_node_with(folders.flags(), async |mut world| {
        write_plan(&world, &["u1", "u2"]).await;
        let addresses = world.topology.source.pods[0].address.both();
        let gone: IpAddr = ADDRESS.parse().unwrap();
        assert!(!has(&world, addresses[0]) && !has(&world, gone));

        // There was no folder.
        let began = Instant::now();
        write(&folders, "c1", "u1", &addresses);
        while !addresses.iter().all(|ip| has(&world, *ip)) {
            assert!(began.elapsed() < Duration::from_secs(10), "in vain");
            sleep(Duration::from_millis(1)).await;
        }
        println!(
            "from the file to the element, and to having seen it: {:?}",
            began.elapsed()
        );
        write(&folders, "c2", "u2", &[gone]);
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
            fs::remove_file(folders.cached(container)).unwrap();
        }
        expect(&world, gone, false).await;
        assert!(has(&world, addresses[0]), "its network is there");
    });
}

#[test]
fn what_is_no_cached_result_does_no_harm() {
    let folders = RuntimeFolders::new().unwrap();
    on_node_with(folders.flags(), async |world| {
        write_plan(&world, &["u1", "u2"]).await;
        let bad: IpAddr = ADDRESS.parse().unwrap();
        let good = world.topology.source.pods[0].address.both();
        write(&folders, "own", "u3", &[bad]);
        fs::write(folders.path("elsewhere"), pod("link", "u1", &[bad]).cached()).unwrap();
        symlink(folders.path("elsewhere"), folders.cached("link")).unwrap();
        let huge = pod("huge", "u1", &[bad]).cached() + &" ".repeat(1 << 20);
        fs::write(folders.cached("huge"), huge).unwrap();
        fs::write(folders.cached("garbage"), [0; 64]).unwrap();
        let text = pod("half", "u1", &[bad]).cached();
        fs::write(folders.cached("half"), &text[..text.len() - 1]).unwrap();
        let other = pod("kind", "u1", &[bad])
            .cached()
            .replace("cniCacheV1", "cniCacheV2");
        fs::write(folders.cached("kind"), other).unwrap();
        // They have been looked at by then, and the agent lives.
        write(&folders, "good", "u2", &good);
        expect(&world, good[0], true).await;
        assert!(!has(&world, bad));
        // So it would have been seen.
        write(&folders, "true", "u1", &[bad]);
        expect(&world, bad, true).await;
    });
}
