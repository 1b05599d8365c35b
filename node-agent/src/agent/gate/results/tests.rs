use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::cni::spec::PodName;

struct Node {
    cache: TempDir,
    results: Results,
}

impl Node {
    fn new() -> Self {
        let cache = tempfile::tempdir().unwrap();
        let results = Results::below(cache.path());
        Self { cache, results }
    }

    fn file(&self, container: &str) -> PathBuf {
        let folder = self.cache.path().join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        folder.join(format!("lab-{container}-eth0"))
    }

    /// As a runtime writes it, so many seconds ago.
    fn write(&self, container: &str, uid: &str, address: &str, ago: u64) {
        fs::write(self.file(container), text(container, uid, address)).unwrap();
        let file = fs::File::options()
            .write(true)
            .open(self.file(container))
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(ago))
            .unwrap();
    }
}

fn text(container: &str, uid: &str, address: &str) -> String {
    let cached = json!({
        "kind": "cniCacheV1", "containerId": container, "ifName": "eth0", "networkName": "lab",
        "cniArgs": [["K8S_POD_UID", uid], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", uid]],
        "result": {"ips": [{"address": format!("{address}/24")}]},
    });
    cached.to_string()
}

fn attachment(container: &str) -> ValidAttachment {
    ValidAttachment {
        container: container.into(),
        interface: "eth0".into(),
    }
}

fn note(container: &str, uid: &str, address: &str) -> Note {
    Note {
        pod: PodName {
            uid: uid.into(),
            namespace: "shop".into(),
            name: uid.into(),
        },
        attachment: attachment(container),
        addresses: [address.parse().unwrap()].into(),
    }
}

fn come(notes: &[Note]) -> Changes {
    Changes {
        come: notes.to_vec(),
        ..Changes::default()
    }
}

fn gone(containers: &[&str]) -> Changes {
    Changes {
        gone: containers.iter().map(|container| attachment(container)).collect(),
        ..Changes::default()
    }
}

#[test]
fn what_comes_and_goes_is_told_once() {
    let mut node = Node::new();
    assert_eq!(node.results.look(), Changes::default(), "there is no folder");
    node.write("c1", "u1", "10.1.0.2", 0);
    assert_eq!(node.results.look(), come(&[note("c1", "u1", "10.1.0.2")]));
    assert_eq!(node.results.look(), Changes::default());
    node.write("c2", "u2", "10.1.0.3", 0);
    fs::remove_file(node.file("c1")).unwrap();
    let both = Changes {
        come: vec![note("c2", "u2", "10.1.0.3")],
        ..gone(&["c1"])
    };
    assert_eq!(node.results.look(), both);
    fs::remove_dir_all(node.cache.path().join(FOLDER)).unwrap();
    assert_eq!(node.results.look(), gone(&["c2"]));
}

#[test]
fn a_file_that_is_being_written_is_read_again() {
    let mut node = Node::new();
    let text = text("c1", "u1", "10.1.0.2");
    for length in [0, text.len() / 2] {
        fs::write(node.file("c1"), &text[..length]).unwrap();
        assert_eq!(node.results.look(), Changes::default());
    }
    fs::write(node.file("c1"), &text).unwrap();
    assert_eq!(node.results.look(), come(&[note("c1", "u1", "10.1.0.2")]));
}

#[test]
fn of_several_with_one_address_the_last_one_has_it() {
    for order in [["c1", "c2"], ["c2", "c1"]] {
        let mut node = Node::new();
        for container in order {
            let ago = if container == "c1" { 60 } else { 0 };
            node.write(container, container, "10.1.0.2", ago);
        }
        assert_eq!(node.results.look(), come(&[note("c2", "c2", "10.1.0.2")]));
    }
}

#[test]
fn what_is_no_file_of_a_runtime_does_no_harm() {
    let mut node = Node::new();
    let elsewhere = node.cache.path().join("elsewhere");
    fs::write(&elsewhere, text("c1", "u1", "10.1.0.2")).unwrap();
    symlink(&elsewhere, node.file("link")).unwrap();
    fs::create_dir(node.file("folder")).unwrap();
    nix::unistd::mkfifo(&node.file("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(node.file("garbage"), "\u{0}\u{1}").unwrap();
    let huge = text("c1", "u1", "10.1.0.2") + &" ".repeat(usize::try_from(LONGEST).unwrap());
    fs::write(node.file("huge"), huge).unwrap();
    node.write("c2", "u2", "10.1.0.3", 0);
    assert_eq!(node.results.look(), come(&[note("c2", "u2", "10.1.0.3")]));
}

#[test]
fn what_is_overwritten_by_garbage_is_gone() {
    let mut node = Node::new();
    node.write("c1", "u1", "10.1.0.2", 0);
    node.results.look();
    fs::write(node.file("c1"), "7").unwrap();
    assert_eq!(node.results.look(), gone(&["c1"]));
}

#[test]
fn there_is_room_for_so_many_and_then_for_those_that_come_when_others_go() {
    let mut node = Node::new();
    for number in 0..MOST_FILES {
        fs::write(node.file(&format!("nothing-{number}")), "").unwrap();
    }
    node.results.look();
    node.write("c1", "u1", "10.1.0.2", 0);
    assert_eq!(node.results.look(), Changes::default());
    fs::remove_file(node.file("nothing-7")).unwrap();
    // It may come before the one that goes, in the folder's order: then there is room the next time.
    let looks = [node.results.look(), node.results.look()];
    assert!(
        looks.contains(&come(&[note("c1", "u1", "10.1.0.2")])),
        "{looks:?}"
    );
}

#[tokio::test]
async fn the_kernel_tells_when_one_is_written_and_when_it_goes() {
    let mut node = Node::new();
    let expected = [come(&[note("c1", "u1", "10.1.0.2")]), gone(&["c1"])];
    for (number, expected) in expected.into_iter().enumerate() {
        match number {
            0 => node.write("c1", "u1", "10.1.0.2", 0),
            _ => fs::remove_file(node.file("c1")).unwrap(),
        }
        let told = async {
            loop {
                node.results.changed().await;
                let changes = node.results.look();
                if changes != Changes::default() {
                    return changes;
                }
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(10), told).await;
        assert_eq!(told.unwrap(), expected);
    }
}
