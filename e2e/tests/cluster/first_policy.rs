//! What the README and the chart's notes tell a new user to do works as it is written there.

use std::{collections::BTreeMap, fs};

use egressnat_e2e::{
    cluster::Cluster,
    error::Context,
    site::{CONTROL_PLANE, Site},
    walk,
};
use libtest_mimic::Failed;

use crate::{
    Test,
    scene::{DEADLINE, Scene},
};

pub const TESTS: &[Test] = &[
    ("first_policy::of_the_readme", of_the_readme),
    ("first_policy::of_the_charts_notes", of_the_charts_notes),
];

fn of_the_readme(cluster: &Cluster) -> Result<(), Failed> {
    let path = Site::root().join("README.md");
    let readme = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    let policy = between(&readme, "```yaml\n", "```").ok_or("no policy in the README")?;
    works(&Scene::new(cluster)?, "default-via-control-plane", &policy)
}

fn of_the_charts_notes(cluster: &Cluster) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let notes = scene
        .kubectl
        .helm(["-n", "egressnat-system", "get", "notes", "egressnat"])?;
    let policy = between(&notes, "<<'YAML'\n", "YAML").ok_or("no policy in the notes")?;
    // Both are for the reader to replace.
    let policy = policy
        .replace("192.0.2.0/24", "172.18.0.0/16")
        .replace("192.0.2.10", &CONTROL_PLANE.v4.to_string());
    works(&scene, "first", &policy)
}

/// It selects the net-tshoot pods, for IPv4, and `kubectl get` says so.
fn works(scene: &Scene, name: &str, policy: &str) -> Result<(), Failed> {
    scene.kubectl.apply(policy)?;
    let gateway = CONTROL_PLANE.v4.to_string();
    walk::expect(scene.kubectl, "the first policy", [Some(&gateway), None])?;
    let shown = egressnat_e2e::wait::until("its line", DEADLINE, || {
        let text = scene
            .kubectl
            .run(["get", "enp", name])
            .map_err(|error| error.to_string())?;
        let shown = columns(&text);
        if shown.get("READY").is_some_and(|ready| ready == "True") {
            Ok(shown)
        } else {
            Err(text)
        }
    })?;
    let pods = scene
        .kubectl
        .run(["-n", "default", "get", "pod", "-o", "name"])?
        .lines()
        .count();
    let pods = pods.to_string();
    for (column, value) in [
        ("NAME", name),
        ("GATEWAY", CONTROL_PLANE.name),
        ("ADDRESS", &gateway),
        ("PODS", &pods),
    ] {
        assert_eq!(shown.get(column).map(String::as_str), Some(value), "{shown:?}");
    }
    Ok(())
}

/// The indentation goes.
fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let (_, rest) = text.split_once(start)?;
    let (block, _) = rest.split_once(end)?;
    let indent = block.len() - block.trim_start_matches(' ').len();
    let lines = block.lines().map(|line| line.get(indent..).unwrap_or_default());
    Some(lines.collect::<Vec<_>>().join("\n"))
}

fn columns(table: &str) -> BTreeMap<String, String> {
    let mut lines = table.lines().map(str::split_whitespace);
    let (names, values) = (lines.next(), lines.next());
    let pairs = names.into_iter().flatten().zip(values.into_iter().flatten());
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
