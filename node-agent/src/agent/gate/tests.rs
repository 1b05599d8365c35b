use std::net::IpAddr;

use clap::Parser;
use egressnat_crds::plan;
use tempfile::TempDir;

use super::*;
use crate::cli::Cli;

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
