//! Goldens: the questions below about the world of `testdata/explain/world.yaml`, and their answers beside
//! it. `BLESS=1 cargo test -p kubectl-egressnat` writes the latter anew; read the difference.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use egressnat_operator::ranges;

use super::*;
use crate::cli::destination;
use crate::testing;

/// Name of the golden, pod, destination.
const QUESTIONS: [(&str, &str, Option<&str>); 18] = [
    ("wins-over-two", "web", None),
    ("wins-over-two-to", "web", Some("198.51.100.7")),
    ("source-ports", "web", Some("203.0.113.7")),
    ("excluded", "web", Some("198.51.100.200")),
    ("not-a-destination", "web", Some("192.0.2.200")),
    ("service", "web", Some("10.96.0.10")),
    ("service-ingress", "web", Some("203.0.113.80")),
    ("service-external", "web", Some("203.0.113.81:443")),
    ("service-another-port", "web", Some("203.0.113.81:53")),
    ("node", "web", Some("192.0.2.2")),
    ("api-server", "web", Some("172.18.0.9")),
    ("pod", "web", Some("10.244.2.6")),
    ("cluster-range", "web", Some("172.30.1.1")),
    ("other-family", "web", Some("2001:db8::1")),
    ("host-network", "host", Some("198.51.100.7")),
    ("no-policy", "none", Some("198.51.100.7")),
    ("gateway-missing", "lonely", None),
    ("gateway-missing-to", "lonely", Some("198.51.100.7")),
];

const WORLD: &str = include_str!("../../testdata/explain/world.yaml");

fn world() -> Snapshot {
    testing::snapshot(WORLD)
}

fn ask(snapshot: &Snapshot, pod: &str, to: Option<&str>) -> Explanation {
    explain(
        snapshot,
        &format!("apps/{pod}"),
        to.map(|t| destination(t).unwrap()),
    )
    .unwrap()
}

#[test]
fn answers_are_those_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/explain");
    let mut different = String::new();
    for (name, pod, to) in QUESTIONS {
        let text = ask(&world(), pod, to).to_string();
        let golden = folder.join(name).with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != text {
            writeln!(different, "{name}\n--- is now\n{text}").unwrap();
        }
    }
    assert!(different.is_empty(), "{different}\nBLESS=1 writes them anew");
}

/// The README shows what the program prints.
#[test]
fn the_readme_shows_an_answer() {
    let readme = include_str!("../../../README.md");
    let question = "$ kubectl egressnat explain web -n apps --to 198.51.100.7\n";
    let (_, shown) = readme.split_once(question).unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    let mut snapshot = world();
    let worker = snapshot.world.plans.get_mut("worker").unwrap();
    worker.status.observed_generation = Some(worker.generation);
    assert_eq!(shown, ask(&snapshot, "web", Some("198.51.100.7")).to_string());
}

#[test]
fn a_pod_that_is_not_there_has_no_explanation() {
    assert_eq!(explain(&world(), "apps/gone", None), None);
}

#[test]
fn what_a_policy_wins_and_loses_is_all_that_it_has() {
    let explanation = ask(&world(), "web", None);
    assert_eq!(explanation.policies.len(), 3);
    for policy in &explanation.policies {
        let lost = policy.lost.iter().flat_map(|l| &l.ranges);
        let all = ranges::merge(policy.wins.iter().chain(lost).copied());
        let own = &world().world.policies[&policy.name];
        assert_eq!(all, own.in_force().unwrap().destinations, "{}", policy.name);
    }
}

#[test]
fn what_the_agents_have_not_programmed_is_said() {
    let mut snapshot = world();
    let state = |snapshot: &Snapshot, role: &str| {
        let explanation = ask(snapshot, "web", None);
        let nodes = explanation.policies[0].nodes.clone();
        nodes.into_iter().find(|n| n.role == role).unwrap().progress
    };
    let behind = Progress::Behind {
        generation: 7,
        programmed: Some(6),
    };
    assert_eq!(state(&snapshot, "source"), behind);
    let plans = &mut snapshot.world.plans;
    plans.get_mut("worker").unwrap().status.observed_generation = Some(7);
    assert_eq!(state(&snapshot, "source"), Progress::Programmed { generation: 7 });
    assert!(
        ask(&snapshot, "web", Some("198.51.100.7"))
            .summary
            .contains("sees 192.0.2.1,")
    );

    let plans = &mut snapshot.world.plans;
    plans.get_mut("edge").unwrap().spec.policies.remove(0);
    assert_eq!(state(&snapshot, "gateway"), Progress::NotWritten);
    snapshot.world.plans.remove("edge");
    assert_eq!(
        ask(&snapshot, "web", None).policies[0].gateway,
        None,
        "nobody says who holds it"
    );
}

#[test]
fn of_several_gateways_the_pods_own_is_shown_and_another_takes_its_place() {
    let several = r#"
---
kind: EgressNATPolicy
apiVersion: egressnat.io/v1alpha1
metadata: {name: several, uid: policy-several, generation: 1}
spec:
  priority: 300
  selectors: [{podSelector: {matchLabels: {app: web}}}]
  egressGateways: [{nodeSelector: {}, egressIP: 192.0.2.1}, {nodeSelector: {}, egressIP: 172.18.0.2}]
"#;
    let mut snapshot = testing::snapshot(&format!("{WORLD}{several}"));
    let mut used = Vec::new();
    for _ in 0..2 {
        let first = ask(&snapshot, "web", None).policies.swap_remove(0);
        assert_eq!(first.name, "several");
        let node = first.gateway.unwrap();
        let own = if node == "edge" { "192.0.2.1" } else { "172.18.0.2" };
        assert_eq!(first.addresses, [own.parse::<IpAddr>().unwrap()]);
        snapshot.world.nodes.get_mut(&node).unwrap().ready = false;
        used.push(node);
    }
    used.sort();
    assert_eq!(used, ["edge", "worker"]);
}

#[test]
fn of_an_invalid_spec_what_the_plans_say_is_in_force() {
    let broken = WORLD.replace("egressSourceIP: 192.0.2.1\n", "egressSourceIP: nonsense\n");
    let broken = broken.replace(
        "status: {id: 1}",
        "status: {id: 1, conditions: [{type: Accepted, status: 'False', reason: InvalidSpec, observedGeneration: 1, \
         message: what the operator says, lastTransitionTime: '2026-03-01T00:00:00Z'}]}",
    );
    let explanation = ask(&testing::snapshot(&broken), "web", Some("198.51.100.7"));
    let first = &explanation.policies[0];
    assert_eq!(first.name, "payments");
    assert_eq!(first.invalid.as_deref(), Some("what the operator says"));
    assert!(
        explanation.summary.contains("will see 192.0.2.1"),
        "{}",
        explanation.summary
    );
}

#[test]
fn an_address_that_the_gateway_does_not_find_is_dropped() {
    let mut snapshot = world();
    let plan = snapshot.world.plans.get_mut("edge").unwrap();
    plan.status.missing_addresses = vec!["192.0.2.1".parse().unwrap()];
    let summary = ask(&snapshot, "web", Some("198.51.100.7")).summary;
    assert!(summary.contains("does not find 192.0.2.1"), "{summary}");
}
