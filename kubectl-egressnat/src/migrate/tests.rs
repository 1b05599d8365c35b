//! Goldens: `testdata/migrate/CASE.yaml` and, beside it, `CASE.out` with what it becomes.
//! `BLESS=1 cargo test -p kubectl-egressnat` writes the latter anew; read the difference.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use egressnat_crds::EgressNATPolicy;
use egressnat_operator::valid::ValidPolicy;

use super::*;
use crate::documents;

const CASES: [&str; 6] = [
    "antrea",
    "cilium-gateway-policy",
    "cilium-nat-policy",
    "ovn",
    "refused",
    "spidernet",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/migrate")
}

fn of_text(text: &str) -> Migration {
    migrate(&documents::parse("input.yaml", text).unwrap())
}

fn of_case(case: &str) -> Migration {
    of_text(&fs::read_to_string(folder().join(case).with_extension("yaml")).unwrap())
}

/// The policies as they parse back.
fn parsed(migration: &Migration) -> Vec<EgressNATPolicy> {
    let documents = documents::parse("out", &migration.to_string()).unwrap();
    assert!(documents.iter().all(documents::Document::is_policy));
    let policies = documents
        .into_iter()
        .map(|d| serde_json::from_value(d.object).unwrap());
    policies.collect()
}

#[test]
fn the_files_become_what_is_written_down() {
    let mut different = String::new();
    for case in CASES {
        let migration = of_case(case);
        let refused = migration.refused.iter().map(|r| format!("\nrefused: {r}\n"));
        let text = migration.to_string() + &refused.collect::<String>();
        let golden = folder().join(case).with_extension("out");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != text {
            writeln!(different, "{case}\n--- is now\n{text}").unwrap();
        }
    }
    assert!(different.is_empty(), "{different}\nBLESS=1 writes them anew");
}

#[test]
fn every_file_is_a_case() {
    let inputs = fs::read_dir(folder()).unwrap().map(|f| f.unwrap().path());
    let inputs = inputs.filter(|p| p.extension().is_some_and(|e| e == "yaml"));
    let mut names: Vec<String> = inputs
        .map(|p| p.file_stem().unwrap().to_str().unwrap().into())
        .collect();
    names.sort();
    assert_eq!(names, CASES);
}

#[test]
fn what_is_given_parses_and_passes_the_planner() {
    let mut seen = 0;
    for case in CASES {
        let migration = of_case(case);
        let policies = parsed(&migration);
        assert_eq!(policies.len(), migration.policies.len(), "{case}");
        for (policy, said) in policies.iter().zip(&migration.policies) {
            assert_eq!(policy.metadata.name.as_deref(), Some(said.name.as_str()));
            ValidPolicy::parse(&policy.spec).unwrap();
            assert!(said.text.lines().all(|l| !l.contains("null")), "{}", said.text);
            seen += 1;
        }
    }
    assert!(seen > 12, "{seen}");
}

#[test]
fn every_kind_is_given_by_some_case() {
    let given: Vec<Policy> = CASES.iter().flat_map(|c| of_case(c).policies).collect();
    for source in SOURCES.iter().filter(|s| s.convert.is_some()) {
        let kind = format!("{} ", source.kind);
        assert!(given.iter().any(|p| p.from.starts_with(&kind)), "{kind}");
    }
}

#[test]
fn no_object_is_lost() {
    for case in CASES {
        let text = fs::read_to_string(folder().join(case).with_extension("yaml")).unwrap();
        let documents = documents::parse(case, &text).unwrap();
        let gateways = documents
            .iter()
            .filter(|d| d.object["kind"] == spidernet::GATEWAY);
        let migration = migrate(&documents);
        let mut objects: Vec<&String> = migration.refused.iter().map(|r| &r.object).collect();
        objects.dedup();
        let said = migration.policies.len() + objects.len() + gateways.count();
        assert_eq!(said, documents.len(), "{case}");
        assert_eq!(migration.ignored, [""; 0], "{case}");
    }
}

#[test]
fn json_lists_and_other_kinds_are_read() {
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}},
        {"apiVersion": "example.org/v1", "kind": "EgressIP", "metadata": {"name": "other"}, "spec": {}},
        {"apiVersion": "k8s.ovn.org/v1", "kind": "EgressIP", "metadata": {"name": "e"},
         "spec": {"egressIPs": ["192.0.2.1"], "namespaceSelector": {}, "podSelector": null}}]}"#;
    let migration = of_text(list);
    assert_eq!(
        migration.ignored,
        ["input.yaml, document 1, item 1", "input.yaml, document 1, item 2"]
    );
    assert_eq!(migration.refused, []);
    let policies = parsed(&migration);
    assert_eq!(policies[0].spec.egress_source_ip.as_deref(), Some("192.0.2.1"));
    let entry = &policies[0].spec.selectors[0];
    assert_eq!(
        entry.namespace_selector,
        Some(Default::default()),
        "every namespace, not none"
    );
}

#[test]
fn more_than_the_api_takes_is_refused() {
    let of_size = |cidrs: u32| {
        let cidrs: Vec<String> = (0..cidrs)
            .map(|n| format!("'10.{}.{}.0/24'", n / 256, n % 256))
            .collect();
        of_text(&format!(
            "{{apiVersion: cilium.io/v2alpha1, kind: CiliumEgressNATPolicy, metadata: {{name: n}}, spec: {{
                egress: [{{podSelector: {{}}}}], egressSourceIP: 192.0.2.1, destinationCIDRs: [{}]}}}}",
            cidrs.join(", ")
        ))
    };
    assert_eq!(of_size(256).policies.len(), 1);
    let refused = of_size(257).refused;
    assert!(
        refused[0].reason.field.contains("destinationCIDRs"),
        "{refused:?}"
    );
}

#[test]
fn only_whole_objects_are_given() {
    let unread = "{apiVersion: k8s.ovn.org/v1, kind: EgressIP, metadata: {name: e}}";
    let unnamed =
        "{apiVersion: k8s.ovn.org/v1, kind: EgressIP, spec: {egressIPs: [192.0.2.1], namespaceSelector: {}}}";
    for (text, field) in [(unread, "spec"), (unnamed, "metadata.name")] {
        let migration = of_text(text);
        assert_eq!(migration.policies, []);
        assert_eq!(migration.refused[0].reason.field, field, "{text}");
    }
}
