//! Goldens: each folder of `testdata/compile` holds `input.yaml` (node, facts, plan) and `desired.txt`, the
//! state in nft and ip syntax. `BLESS=1 cargo test -p egressnat-agent` writes the latter anew.

use std::fs;
use std::path::Path;

use egressnat_crds::plan::{EgressPlanSpec, PlanPod};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::diff::{self, ObservedTable};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    node: String,
    facts: Facts,
    plan: EgressPlanSpec,
}

fn input(case: &str) -> Input {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/compile")
        .join(case)
        .join("input.yaml");
    serde_yaml_ng::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn compiled(input: &Input) -> Result<Desired, CompileError> {
    compile(&input.plan, &input.node, &input.facts, &Numbers::default())
}

#[test]
fn goldens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/compile");
    let mut cases: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        let name = case.file_name().unwrap().to_str().unwrap();
        let text = match compiled(&input(name)) {
            Ok(desired) => desired.to_string(),
            Err(error) => format!("{}: {error}\n", error.category()),
        };
        let golden = case.join("desired.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(
            expected, text,
            "{name}: if this is what you want, run with BLESS=1"
        );
    }
}

#[test]
fn every_reference_of_a_ruleset_leads_somewhere() {
    for case in ["source", "gateway", "both-roles", "overlap", "exit"] {
        let ruleset = compiled(&input(case)).unwrap().ruleset.unwrap();
        let text = ruleset.to_string();
        for word in text.split_whitespace().collect::<Vec<_>>().windows(2) {
            let target = word[1].trim_end_matches(',');
            match word[0] {
                "goto" | "jump" => assert!(ruleset.chains.contains_key(target), "{case}: chain {target}"),
                "map" | "vmap" if target.starts_with('@') => {
                    assert!(ruleset.sets.contains_key(&target[1..]), "{case}: map {target}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_gateway_keeps_its_number_when_another_comes() {
    let mut case = input("source");
    let before = compiled(&case).unwrap();
    // "aaa" sorts before the gateway that is there.
    case.facts.gateway_numbers = [("172.18.0.3".parse().unwrap(), 1)].into();
    let mut peer = case.plan.peers[0].clone();
    peer.node = "aaa".into();
    peer.underlay = "172.18.0.9".parse().unwrap();
    case.plan.peers.insert(0, peer);
    let mut policy = case.plan.policies[0].clone();
    policy.id = 99;
    policy.source.as_mut().unwrap().gateway = Some("aaa".into());
    case.plan.policies.push(policy);
    let after = compiled(&case).unwrap();
    let old = before.ruleset.unwrap();
    let new = after.ruleset.unwrap();
    let id = ElementKeyOf(7).key();
    assert_eq!(old.sets["ids4"].elements[&id], new.sets["ids4"].elements[&id]);
    assert!(after.net.routes.is_superset(&before.net.routes));
    assert!(after.net.rules.is_superset(&before.net.rules));
}

#[test]
fn exits_keep_their_numbers_too_and_share_none_with_gateways() {
    let mut case = input("exit");
    // A gateway that comes takes none of those in use.
    case.facts.exit_numbers = [(3, 1)].into();
    let before = compiled(&case).unwrap();
    let mut source = case.plan.policies[0].source.clone().unwrap();
    source.gateway = Some("k8s-guide-worker".into());
    case.plan.policies[2].source = Some(source);
    let after = compiled(&case).unwrap();
    assert!(after.net.routes.is_superset(&before.net.routes));
    let new: BTreeSet<_> = after
        .net
        .rules
        .difference(&before.net.rules)
        .map(|r| r.table)
        .collect();
    assert_eq!(new, [7702].into());
}

#[test]
fn an_address_that_moves_to_an_exit_takes_its_connections_along() {
    let exit = compiled(&input("exit")).unwrap().ruleset.unwrap();
    let mut case = input("exit");
    case.facts.exits.clear();
    let main = compiled(&case).unwrap().ruleset.unwrap();
    for (from, to) in [(&main, &exit), (&exit, &main)] {
        let observed = ObservedTable::from(from);
        assert_ne!(diff::nft::diff(Some(to), Some(&observed)), []);
        assert!(diff::flows::concerned(Some(to), Some(&observed)).is_empty());
        let (ids, steps) = diff::flows::leave_tunnel(Some(to), &mut observed.clone());
        assert!(ids.is_empty() && steps.is_empty());
    }
}

#[test]
fn a_gateway_without_exits_has_nothing_of_theirs() {
    let mut case = input("exit");
    case.facts.exits.clear();
    let text = compiled(&case).unwrap().to_string();
    for word in [
        "exit",
        "eth1",
        "rp_filter { ",
        "0x05000000",
        "7705",
        "unreachable",
    ] {
        assert!(
            compiled(&input("exit")).unwrap().to_string().contains(word),
            "{word}"
        );
        assert!(!text.contains(word), "{word}");
    }
}

struct ElementKeyOf(u16);

impl ElementKeyOf {
    fn key(&self) -> crate::model::ElementKey {
        crate::model::ElementKey::Mark(crate::owned::ct_mark(self.0))
    }
}

#[test]
fn a_new_pod_is_one_element_and_concerns_only_itself() {
    let mut case = input("source");
    let before = compiled(&case).unwrap().ruleset.unwrap();
    case.plan.pods.push(PlanPod {
        uid: "new".into(),
        name: "default/new".into(),
        ips: vec!["10.244.1.77".parse().unwrap()],
        profile: 1,
    });
    let after = compiled(&case).unwrap().ruleset.unwrap();
    let observed = ObservedTable::from(&before);
    let steps: Vec<String> = diff::nft::diff(Some(&after), Some(&observed))
        .iter()
        .map(|s| s.to_string())
        .collect();
    assert_eq!(
        steps,
        ["add element inet egressnat pods4 { 10.244.1.77 : 0x00000001 }"]
    );
    let concerned = diff::flows::concerned(Some(&after), Some(&observed));
    assert_eq!(concerned.sources, ["10.244.1.77".parse().unwrap()].into());
    assert!(concerned.ids.is_empty());
}

#[test]
fn a_failover_is_one_element_per_family_and_touches_no_connection() {
    let mut case = input("source");
    let before = compiled(&case).unwrap().ruleset.unwrap();
    case.facts.gateway_numbers = [("172.18.0.3".parse().unwrap(), 1)].into();
    case.plan.peers.push(egressnat_crds::plan::Peer {
        node: "k8s-guide-worker2".into(),
        underlay: "172.18.0.4".parse().unwrap(),
        ranges: vec![],
    });
    case.plan.policies[0].source.as_mut().unwrap().gateway = Some("k8s-guide-worker2".into());
    let after = compiled(&case).unwrap().ruleset.unwrap();
    let observed = ObservedTable::from(&before);
    let steps: Vec<String> = diff::nft::diff(Some(&after), Some(&observed))
        .iter()
        .map(|s| s.to_string())
        .collect();
    let of_ids: Vec<_> = steps.iter().filter(|s| s.contains(" ids")).collect();
    assert_eq!(of_ids.len(), 4, "{steps:#?}");
    assert!(diff::flows::concerned(Some(&after), Some(&observed)).is_empty());
    let (ids, steps) = diff::flows::leave_tunnel(Some(&after), &mut observed.clone());
    assert!(ids.is_empty() && steps.is_empty(), "it stays in the tunnel");
}

#[test]
fn what_leaves_the_tunnel_has_no_gateway_first() {
    let mut case = input("source");
    let before = ObservedTable::from(&compiled(&case).unwrap().ruleset.unwrap());
    case.plan.policies[0].source.as_mut().unwrap().gateway = None;
    let after = compiled(&case).unwrap().ruleset.unwrap();
    for desired in [None, Some(&after)] {
        let mut table = before.clone();
        let (ids, steps) = diff::flows::leave_tunnel(desired, &mut table);
        assert_eq!(ids, [case.plan.policies[0].id].into());
        assert_eq!(steps.len(), 2, "an element of each family");
        assert!(table.sets["ids4"].elements.is_empty() && table.sets["ids6"].elements.is_empty());
    }
}

#[test]
fn what_no_longer_comes_out_of_the_tunnel_is_unknown_first() {
    let case = input("gateway");
    let mut table = ObservedTable::from(&compiled(&case).unwrap().ruleset.unwrap());
    let (ids, steps) = diff::flows::leave_tunnel(None, &mut table);
    assert_eq!(ids, [7, 8].into());
    assert_eq!(steps.len(), 1);
    assert!(table.sets["tunnel_ids"].elements.is_empty());
}

#[test]
fn contradictions_of_a_plan_are_refused_by_name() {
    type Case = (&'static str, fn(&mut Input), &'static str);
    let cases: [Case; 5] = [
        ("unknown gateway", |c| c.plan.peers.clear(), "PlanInvalid"),
        ("unknown profile", |c| c.plan.pods[0].profile = 9, "PlanInvalid"),
        (
            "unknown policy",
            |c| c.plan.profiles[0].destinations[0].policy = 9,
            "PlanInvalid",
        ),
        ("underlay gone", |c| c.facts.underlay = None, "UnderlayMissing"),
        ("no tunnel yet", |c| c.facts.tunnel = None, "TunnelMissing"),
    ];
    for (name, change, category) in cases {
        let mut case = input("source");
        change(&mut case);
        assert_eq!(compiled(&case).unwrap_err().category(), category, "{name}");
    }
}

#[test]
fn more_gateways_than_marks_are_refused() {
    let mut case = input("source");
    for n in 0..=RoutingMark::MAX_NUMBER {
        let node = format!("gateway-{n}");
        case.plan.peers.push(egressnat_crds::plan::Peer {
            node: node.clone(),
            underlay: format!("172.18.1.{n}").parse().unwrap(),
            ranges: vec![],
        });
        let mut policy = case.plan.policies[0].clone();
        policy.id = 100 + u16::from(n);
        policy.source.as_mut().unwrap().gateway = Some(node);
        case.plan.policies.push(policy);
    }
    assert_eq!(compiled(&case).unwrap_err().category(), "TooManyGateways");
}

/// Pods of either family, or both, some with the same address, of the profiles that the case has.
fn pods(profiles: u32) -> impl Strategy<Value = Vec<PlanPod>> {
    let ips = proptest::collection::vec((any::<bool>(), 2..12u8), 0..3);
    let pods = proptest::collection::vec((ips, 1..=profiles), 0..12);
    pods.prop_map(|pods| {
        let pod = |(number, (ips, profile)): (usize, (Vec<(bool, u8)>, u32))| PlanPod {
            uid: number.to_string(),
            name: format!("default/pod-{number}"),
            ips: ips.iter().map(|(v6, host)| address(*v6, *host)).collect(),
            profile,
        };
        pods.into_iter().enumerate().map(pod).collect()
    })
}

fn address(v6: bool, host: u8) -> IpAddr {
    let text = if v6 {
        format!("fd00:10:244:1::{host:x}")
    } else {
        format!("10.244.1.{host}")
    };
    text.parse().unwrap()
}

proptest! {
    #[test]
    fn the_shortcut_for_pods_does_what_the_long_way_does(old in pods(2), new in pods(2)) {
        let mut case = input("overlap");
        case.plan.pods = old;
        let before = case.plan.clone();
        let mut table = ObservedTable::from(&compiled(&case).unwrap().ruleset.unwrap());
        case.plan.pods = new;
        let ruleset = compiled(&case).unwrap().ruleset.unwrap();
        let concerned = diff::flows::concerned(Some(&ruleset), Some(&table));

        prop_assert!(diff::pods::same_but_pods(&before, &case.plan));
        let change = diff::pods::diff(&case.plan, &table).unwrap();
        prop_assert_eq!(&change.steps, &diff::nft::diff(Some(&ruleset), Some(&table)));
        prop_assert_eq!(change.sources.iter().copied().collect::<BTreeSet<_>>(), concerned.sources);
        prop_assert!(concerned.ids.is_empty());
        change.apply(&mut table);
        prop_assert_eq!(table, ObservedTable::from(&ruleset));
    }
}

#[test]
fn there_is_no_shortcut_for_more_than_pods() {
    let case = input("overlap");
    let table = ObservedTable::from(&compiled(&case).unwrap().ruleset.unwrap());
    let mut other = case.plan.clone();
    other.policies.pop();
    assert!(!diff::pods::same_but_pods(&case.plan, &other));
    let mut other = case.plan.clone();
    other.pods[0].profile = 99;
    assert_eq!(
        diff::pods::diff(&other, &table),
        None,
        "a profile that is not there"
    );
    assert_eq!(diff::pods::diff(&case.plan, &ObservedTable::default()), None);
}
