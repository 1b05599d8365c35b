//! The documentation: the API server and the operator accept each example as it stands there, and every field, every
//! reason and every metric is explained.

use std::{collections::BTreeSet, path::PathBuf};

use egressnat_crds::EgressNATPolicy;
use egressnat_e2e::site::Site;
use kube::CustomResourceExt;
use serde_json::Value;

use super::world::*;

/// The pages with examples.
fn pages() -> Vec<PathBuf> {
    let root = Site::root();
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let pages = docs.map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = pages
        .filter(|page| page.extension().is_some_and(|e| e == "md"))
        .collect();
    pages.push(root.join("README.md"));
    pages.sort();
    pages
}

/// The policies on a page, in the fenced blocks marked as YAML.
fn examples(page: &str) -> Vec<Value> {
    let blocks = page.split("```yaml\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("```").next().unwrap_or_default());
    let documents = blocks.flat_map(|block| block.split("---\n"));
    let policies = documents.filter(|document| document.contains("kind: EgressNATPolicy"));
    policies
        .map(|block| serde_yaml_ng::from_str(block).unwrap_or_else(|error| panic!("{error} in:\n{block}")))
        .collect()
}

#[tokio::test]
async fn every_example_is_accepted() {
    let (cluster, client) = world().await;
    let _operator = Operator::start(&cluster, "only").await;
    for page in pages() {
        let found = examples(&std::fs::read_to_string(&page).unwrap());
        let must_have = ["README.md", "policy.md"].iter().any(|name| page.ends_with(name));
        assert!(!found.is_empty() || !must_have, "{page:?} has none");
        for example in &found {
            // Strict: a field that does not exist is an error.
            let create = ["create", "--validate=strict", "-f", "-"];
            cluster.kubectl(&create, &example.to_string());
        }
        for example in &found {
            let name = example["metadata"]["name"].as_str().unwrap();
            let says = format!("{} of {} accepted", name, page.display());
            let accepted = async || status_when(&client, name, "Accepted", "True").await;
            eventually(&says, accepted).await;
            cluster.kubectl(&["delete", "egressnatpolicy", name], "");
        }
    }
}

/// The section of a field on the page of the policy.
fn section<'a>(page: &'a str, field: &str) -> &'a str {
    let heading = format!("## spec.{field}\n");
    let section = page
        .split(&heading)
        .nth(1)
        .unwrap_or_else(|| panic!("docs/policy.md has no {heading}"));
    section.split("\n## ").next().unwrap_or_default()
}

/// The fields inside a field: of the object that it is, or of each of its entries.
fn inside(schema: &Value) -> BTreeSet<&String> {
    let object = match &schema["items"] {
        Value::Null => schema,
        items => items,
    };
    let fields = object["properties"].as_object();
    fields.into_iter().flat_map(|fields| fields.keys()).collect()
}

/// Whether an object, or an entry of a list, has this field.
fn has(value: &Value, field: &str) -> bool {
    let entries = value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice);
    entries.iter().any(|entry| !entry[field].is_null())
}

#[test]
fn every_field_has_a_section_with_an_example_that_uses_it() {
    let page = std::fs::read_to_string(Site::root().join("docs/policy.md")).unwrap();
    let crd = serde_json::to_value(EgressNATPolicy::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let fields = spec.as_object().unwrap();
    assert!(fields.len() > 5, "{fields:?}");
    let mut nested = BTreeSet::new();
    for (field, schema) in fields {
        let used = examples(section(&page, field))
            .iter()
            .any(|example| !example["spec"][field].is_null());
        assert!(used, "section spec.{field} has no example that uses it");
        // An entry of `egressGateways` has the fields of `egressGateway`, which its section points to.
        let explained = field.strip_suffix('s').filter(|one| *one == "egressGateway");
        let explained = explained.unwrap_or(field);
        let section = section(&page, explained);
        for name in inside(schema) {
            let used = examples(section)
                .iter()
                .any(|example| has(&example["spec"][explained], name));
            let named = section.contains(&format!("`{name}`"));
            assert!(
                named && used,
                "section spec.{explained} does not name and use {name}"
            );
            nested.insert(name);
        }
    }
    assert!(nested.len() > 5, "{nested:?}");
}

/// The metrics that a file registers.
fn registered(file: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(Site::root().join(file)).unwrap();
    let calls = text.split("r.register(").skip(1);
    calls
        .filter_map(|call| call.split('"').nth(1).map(str::to_owned))
        .collect()
}

/// The metrics in a program's table, without their labels and the suffix that counters are shown with.
fn listed(page: &str, program: &str) -> BTreeSet<String> {
    let heading = format!("`egressnat_{program}_…` | |\n");
    let table = page.split(&heading).nth(1).expect("a table of metrics");
    let rows = table.split("\n\n").next().unwrap_or_default().lines();
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter_map(|name| name.split('{').next())
        .map(|name| name.trim_end_matches("_total").to_owned())
        .collect()
}

#[test]
fn the_metrics_on_the_page_are_those_of_the_programs() {
    let page = std::fs::read_to_string(Site::root().join("docs/reasons.md")).unwrap();
    for (program, file) in [
        ("operator", "operator/src/metrics.rs"),
        ("agent", "node-agent/src/agent/metrics.rs"),
    ] {
        let registered = registered(file);
        assert!(registered.len() > 5, "{file}: {registered:?}");
        assert_eq!(listed(&page, program), registered, "{program}");
    }
}

/// The words between quotes, or of an enum, on the lines of these files that a function picks.
fn words(files: &[&str], pick: impl Fn(&str) -> Option<&str>) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for file in files {
        let path = Site::root().join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let before = words.len();
        words.extend(text.lines().filter_map(|line| pick(line).map(str::to_owned)));
        assert!(words.len() > before, "{file} has none");
    }
    words
}

/// What a `match` arm on this line answers with.
fn quoted(line: &str) -> Option<&str> {
    line.split("=> \"").nth(1)?.split('"').next()
}

/// Every name that the programs say something by is explained.
#[test]
fn every_reason_and_category_is_on_the_page() {
    let page = std::fs::read_to_string(Site::root().join("docs/reasons.md")).unwrap();
    let agent = [
        "node-agent/src/error.rs",
        "node-agent/src/compile/mod.rs",
        "node-agent/src/kernel/clash/mod.rs",
        "node-agent/src/kernel/conntrack/mod.rs",
        "node-agent/src/kernel/nft/error.rs",
        "node-agent/src/kernel/rtnl/error.rs",
        "operator/src/error.rs",
    ];
    let is_name =
        |word: &&str| word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric);
    let mut names = words(&agent, |line| quoted(line).filter(is_name));
    for (file, reasons) in [
        ("operator/src/condition.rs", "pub enum Reason {"),
        ("operator/src/plan/faults.rs", "pub enum PodReason {"),
    ] {
        let text = std::fs::read_to_string(Site::root().join(file)).unwrap();
        let reasons = text
            .split(reasons)
            .nth(1)
            .and_then(|rest| rest.split("\n}").next());
        let reasons = reasons.expect("the enum of reasons").lines();
        names.extend(
            reasons
                .filter_map(|line| line.trim().strip_suffix(','))
                .filter(is_name)
                .map(str::to_owned),
        );
    }
    let drops = words(&["node-agent/src/owned.rs"], |line| {
        quoted(line)?.strip_prefix("drop_")
    });
    names.extend(drops);
    assert!(names.len() > 60, "{names:?}");
    let missing: Vec<&String> = names
        .iter()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/reasons.md does not explain {missing:?}");
}

/// The tests that the page of scenarios names, as `file::test`, each in a file of that name.
#[test]
fn every_test_that_shows_a_scenario_is_there() {
    let page = std::fs::read_to_string(Site::root().join("docs/scenarios.md")).unwrap();
    let quoted = page.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = quoted.filter_map(|word| word.split_once("::")).collect();
    assert!(named.len() > 20, "{named:?}");
    let rungs = ["cluster", "kernel", "api"].map(|rung| Site::root().join("e2e/tests").join(rung));
    let is_there = |(file, test): &(&str, &str)| {
        rungs.iter().any(|rung| {
            let text = std::fs::read_to_string(rung.join(format!("{file}.rs"))).unwrap_or_default();
            // A cluster test has its name in a table, others are functions of it.
            text.contains(&format!("\"{file}::{test}\"")) || text.contains(&format!("fn {test}() {{"))
        })
    };
    let missing: Vec<_> = named.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "docs/scenarios.md names {missing:?}");
}
