use std::net::IpAddr;

use clap::Parser;
use egressnat_crds::plan;
use tempfile::TempDir;

use super::*;
use crate::agent::fixtures::{self, ips};
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
    let note = Note::example(&["10.1.2.3"]);
    notes.leave(&note).unwrap();
    let plan = plan("u-1");
    // Also by the agent after that one: the note is taken once, and kept.
    for _ in 0..2 {
        let mut gate = Gate::open(&flags).unwrap();
        assert!(gate.complete(&plan).pods[0].ips.iter().eq(&note.addresses));
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
            if gate.take(news, Some(plan), &BTreeSet::new()) {
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
    let mut gate = Gate::open(&flags).unwrap();
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

fn web(uid: &str, namespace: &str) -> PodName {
    PodName {
        uid: uid.into(),
        namespace: namespace.into(),
        name: "web".into(),
    }
}

/// What the pod's ADD is answered, once the datapath has been brought in step with the plan, or not, for this reason.
async fn added(
    pod: PodName,
    plan: &EgressPlanSpec,
    failure: Option<&str>,
    captured: &[&str],
) -> Option<Answer> {
    let node = tempfile::tempdir().unwrap();
    let mut gate = Gate::open(&flags(&node)).unwrap();
    let (answer, mut answered) = oneshot::channel();
    let request = Request::Add {
        pod,
        attachment: ValidAttachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
        },
        addresses: ips(&["10.1.2.3"]).into_iter().collect(),
        patience: 1_000,
    };
    let captured = ips(captured).into_iter().collect();
    assert!(gate.take(News::Asked(Asked { request, answer }), Some(plan), &captured));
    gate.settle(plan, failure, &captured);
    answered.try_recv().ok()
}

#[tokio::test]
async fn a_pod_is_told_when_the_kernel_knows_it_and_what_keeps_it_from_that() {
    let plan = fixtures::plan(false, &[("u-1", &[])], &["u-2"]);
    let own = ["10.1.2.3"];
    let why = || "it is in the way".to_owned();
    let taken = Answer::Taken {
        address: "10.1.2.3".parse().unwrap(),
    };
    for (uid, namespace, failure, captured, expected) in [
        ("u-1", "shop", None, &own[..], Some(Answer::Programmed)),
        (
            "u-1",
            "shop",
            Some("it is in the way"),
            &own,
            Some(Answer::NotYet { why: why() }),
        ),
        ("u-2", "shop", None, &[], Some(Answer::NotSelected)),
        ("u-9", "other", None, &[], Some(Answer::NotSelected)),
        // The node goes on as it was: only an address that it captures is in danger.
        (
            "u-2",
            "shop",
            Some("it is in the way"),
            &["10.1.2.4"],
            Some(Answer::NotSelected),
        ),
        ("u-2", "shop", Some("it is in the way"), &own, Some(taken.clone())),
        ("u-9", "other", Some("it is in the way"), &own, Some(taken)),
        ("u-3", "shop", None, &[], None),
    ] {
        let answer = added(web(uid, namespace), &plan, failure, captured).await;
        assert_eq!(answer, expected, "{uid} {failure:?} {captured:?}");
    }
}

#[tokio::test]
async fn a_pod_that_the_plan_does_not_name_in_time_starts_where_none_can_select_it() {
    let plan = fixtures::plan(false, &[], &[]);
    for (plan, namespace, captured, expected) in [
        (Some(&plan), "new", &[][..], "NotSelected"),
        (Some(&plan), "new", &["10.1.2.3"], "Taken"),
        (Some(&plan), "shop", &[], "NotYet"),
        (None, "new", &[], "NotYet"),
    ] {
        let node = tempfile::tempdir().unwrap();
        let mut gate = Gate::open(&flags(&node)).unwrap();
        let (answer, mut answered) = oneshot::channel();
        let captured = ips(captured).into_iter().collect();
        gate.waiting.push(Waiting {
            pod: web("u-3", namespace),
            addresses: ips(&["10.1.2.3"]).into_iter().collect(),
            until: Instant::now(),
            answer,
        });
        assert!(!gate.take(News::Due, plan, &captured));
        let said = format!("{:?}", answered.try_recv().unwrap());
        assert!(said.starts_with(expected), "{namespace} {captured:?}: {said}");
    }
}
