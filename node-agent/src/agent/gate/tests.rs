use std::net::IpAddr;

use clap::Parser;
use egressnat_crds::plan;
use tempfile::TempDir;

use super::*;
use crate::cli::Cli;
use crate::cni::results;

fn flags(node: &TempDir) -> GateFlags {
    let path = |name: &str| node.path().join(name);
    for folder in ["run", "cni"] {
        std::fs::create_dir_all(path(folder)).unwrap();
    }
    let cli = Cli::try_parse_from(["egressnat-agent", "--node-name=worker"]).unwrap();
    GateFlags {
        run: path("run"),
        state: path("state"),
        configurations: path("cni"),
        cni_cache: path("cache"),
        ..cli.gate
    }
}

/// A plan that selects a pod of which the API server does not tell the addresses yet.
fn plan(uid: &str) -> EgressPlanSpec {
    EgressPlanSpec {
        pods: vec![plan::PlanPod {
            uid: uid.into(),
            name: "shop/web".into(),
            ips: Vec::new(),
            profile: 7,
        }],
        gate: Some(plan::Gate {
            namespaces: vec!["shop".into()],
            ..plan::Gate::default()
        }),
        ..EgressPlanSpec::default()
    }
}

#[tokio::test]
async fn a_pod_that_started_without_an_agent_has_its_addresses_before_the_plan() {
    let node = tempfile::tempdir().unwrap();
    let flags = flags(&node);
    let notes = Notes::beside(&flags.run.join(SOCKET));
    let address: IpAddr = "10.1.2.3".parse().unwrap();
    let note = Note {
        pod: PodName {
            uid: "u-1".into(),
            namespace: "shop".into(),
            name: "web".into(),
        },
        attachment: ValidAttachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        },
        addresses: [address].into(),
    };
    notes.leave(&note).unwrap();
    let plan = plan("u-1");
    // Also by the agent after that one: the note is taken once, and kept.
    for _ in 0..2 {
        let gate = Gate::open(&flags).unwrap();
        assert_eq!(gate.complete(&plan).pods[0].ips, [address]);
        assert_eq!(notes.read(), []);
    }
}

fn write_result(flags: &GateFlags, container: &str, uid: &str, address: &str) {
    let folder = flags.cni_cache.join(results::FOLDER);
    std::fs::create_dir_all(&folder).unwrap();
    let cached = json!({
        "kind": "cniCacheV1", "containerId": container, "ifName": "eth0", "networkName": "lab",
        "cniArgs": [["K8S_POD_UID", uid], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web"]],
        "result": {"ips": [{"address": format!("{address}/24")}]},
    });
    std::fs::write(folder.join(container), cached.to_string()).unwrap();
}

/// Takes in what is heard until there is something to be done.
async fn hear(gate: &mut Gate, plan: &EgressPlanSpec) {
    let heard = async {
        loop {
            let news = gate.next().await;
            if gate.take(news, Some(plan)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heard)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_runtime_has_cached_is_known_whether_or_not_the_agent_was_there() {
    let node = tempfile::tempdir().unwrap();
    let flags = flags(&node);
    let mut plan = plan("u-1");
    plan.gate.as_mut().unwrap().open = true;
    let address: IpAddr = "10.1.2.3".parse().unwrap();
    let mut gate = Gate::open(&flags).unwrap();
    write_result(&flags, "c1", "u-1", "10.1.2.3");
    hear(&mut gate, &plan).await;
    assert_eq!(gate.complete(&plan).pods[0].ips, [address]);
    drop(gate);
    let mut gate = Gate::open(&flags).unwrap();
    assert_eq!(gate.complete(&plan).pods[0].ips, [address], "the next agent");
    gate.retire();
    assert_eq!(
        gate.complete(&plan).pods[0].ips,
        [address],
        "whatever the plan is"
    );
    drop(gate);
    std::fs::remove_dir_all(&flags.cni_cache).unwrap();
    let gate = Gate::open(&flags).unwrap();
    assert_eq!(
        gate.complete(&plan).pods[0].ips,
        [] as [IpAddr; 0],
        "it went meanwhile"
    );
}

#[tokio::test]
async fn a_cached_result_that_goes_leaves_the_address_to_the_next_pod() {
    let node = tempfile::tempdir().unwrap();
    let flags = flags(&node);
    let mut plan = plan("u-1");
    plan.pods[0].ips = vec!["10.1.2.3".parse().unwrap()];
    write_result(&flags, "c1", "u-1", "10.1.2.3");
    let mut gate = Gate::open(&flags).unwrap();
    std::fs::remove_file(flags.cni_cache.join(results::FOLDER).join("c1")).unwrap();
    hear(&mut gate, &plan).await;
    assert!(
        matches!(gate.complete(&plan), Cow::Borrowed(_)),
        "nobody else has it"
    );
    write_result(&flags, "c2", "u-2", "10.1.2.3");
    hear(&mut gate, &plan).await;
    assert_eq!(gate.complete(&plan).pods[0].ips, [] as [IpAddr; 0]);
}
