//! The documentation: the API server takes each example as it stands there, the planner reads it, and every field
//! and every reason is explained.

use std::{collections::BTreeSet, path::PathBuf};

use egressnat_crds::EgressNATPolicy;
use egressnat_e2e::site::Site;
use egressnat_operator::valid::ValidPolicy;
use kube::CustomResourceExt;
use serde_json::Value;

use super::support::*;

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
    let policies = blocks.filter(|block| block.contains("kind: EgressNATPolicy"));
    policies
        .map(|block| serde_yaml_ng::from_str(block).unwrap_or_else(|error| panic!("{error} in:\n{block}")))
        .collect()
}

#[test]
fn every_example_is_accepted() {
    for page in pages() {
        let found = examples(&std::fs::read_to_string(&page).unwrap());
        let must_have = ["README.md", "policy.md"].iter().any(|name| page.ends_with(name));
        assert!(!found.is_empty() || !must_have, "{page:?} has none");
        for example in found {
            let text = example.to_string();
            // Strict: a field that does not exist is an error.
            let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
            shared().kubectl(&create, &text);
            let policy: EgressNATPolicy = serde_json::from_value(example).unwrap();
            let read = ValidPolicy::parse(&policy.spec);
            assert!(read.is_ok(), "{}: {read:?} of {text}", page.display());
        }
    }
}

#[test]
fn every_field_has_a_section_with_an_example_that_uses_it() {
    let page = std::fs::read_to_string(Site::root().join("docs/policy.md")).unwrap();
    let crd = serde_json::to_value(EgressNATPolicy::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let fields: BTreeSet<&String> = spec.as_object().unwrap().keys().collect();
    assert!(fields.len() > 5, "{fields:?}");
    for field in fields {
        let heading = format!("## spec.{field}\n");
        let section = page
            .split(&heading)
            .nth(1)
            .unwrap_or_else(|| panic!("docs/policy.md has no {heading}"));
        let section = section.split("\n## ").next().unwrap_or_default();
        let uses_it = |example: &Value| !example["spec"][field].is_null();
        assert!(
            examples(section).iter().any(uses_it),
            "{heading} has no example that uses it"
        );
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
