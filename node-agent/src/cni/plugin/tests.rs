use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::super::standing::MARKER_VOLUME;
use super::*;

/// A node with the plugin's folders, and perhaps an agent.
struct Node {
    folder: TempDir,
    on_timeout: &'static str,
}

impl Node {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            on_timeout: "Retry",
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The agent is down; policies may select pods of namespace `shop`.
    fn with_agent_down(self) -> Self {
        std::fs::write(
            self.path("standing"),
            r#"{"namespaces": ["shop", "kube-system"]}"#,
        )
        .unwrap();
        let volumes = self.path("pods/u/volumes/kubernetes.io~empty-dir");
        std::fs::create_dir_all(volumes.join(MARKER_VOLUME)).unwrap();
        self
    }

    fn input(&self) -> String {
        json!({
            "cniVersion": "1.0.0", "name": "lab", "type": super::super::PLUGIN,
            "socket": self.path("gate.sock"), "standing": self.path("standing"),
            "kubeletPods": self.path("pods"), "timeoutSeconds": 1, "onTimeout": self.on_timeout,
            "exemptNamespaces": ["kube-system"],
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]},
        })
        .to_string()
    }

    fn add(&self, namespace: &str) -> Result<Outcome, CniError> {
        serve(&Command::Add(attachment(namespace)), &self.input())
    }
}

/// An agent that gives these answers, one a connection, and returns what it was asked.
fn agent(socket: &Path, answers: Vec<Answer>) -> thread::JoinHandle<Vec<Request>> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            asked.push(serde_json::from_str(&line).unwrap());
            writeln!(&stream, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
        }
        asked
    })
}

fn attachment(namespace: &str) -> Attachment {
    Attachment {
        container: "c0ffee".into(),
        interface: "eth0".into(),
        pod: Some(PodName {
            uid: "u-1".into(),
            namespace: namespace.into(),
            name: "web".into(),
        }),
    }
}

#[test]
fn a_pod_passes_with_the_former_result_when_the_agent_says_so() {
    for answer in [Answer::Programmed, Answer::NotSelected] {
        let node = Node::new();
        let agent = agent(&node.path("gate.sock"), vec![answer]);
        let outcome = node.add("shop").unwrap();
        let former = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]});
        assert_eq!((outcome.result, outcome.warning), (Some(former), None));
        let asked = agent.join().unwrap();
        let Request::Add { pod, addresses, .. } = &asked[0] else {
            panic!("{asked:?}")
        };
        assert_eq!(pod.to_string(), "shop/web");
        assert_eq!(addresses, &["10.1.2.3".parse().unwrap()].into());
    }
}

#[test]
fn it_asks_again_until_the_agent_knows_the_pod() {
    let node = Node::new();
    let not_yet = Answer::NotYet { why: "soon".into() };
    let agent = agent(&node.path("gate.sock"), vec![not_yet, Answer::Programmed]);
    assert!(node.add("shop").is_ok());
    assert_eq!(agent.join().unwrap().len(), 2);
}

#[test]
fn without_the_agent_only_namespaces_that_no_policy_selects_from_start() {
    let node = Node::new().with_agent_down();
    assert_eq!(node.add("other").unwrap().warning, None);
    let error = node.add("shop").unwrap_err();
    assert_eq!(error.code(), 11);
    assert!(
        error.to_string().contains("the agent on this node is down"),
        "{error}"
    );
}

#[test]
fn an_address_that_is_captured_for_another_pod_is_not_used() {
    let node = Node::new().with_agent_down();
    std::fs::write(node.path("captured.json"), r#"["10.1.2.3"]"#).unwrap();
    for namespace in ["other", "shop", "kube-system"] {
        let error = node.add(namespace).unwrap_err();
        assert_eq!(error.code(), 11);
        let said = error.to_string();
        assert!(
            said.contains("10.1.2.3, which this node still captures"),
            "{said}"
        );
    }
    assert_eq!(Notes::beside(&node.path("gate.sock")).read(), []);
    std::fs::write(node.path("captured.json"), r#"["10.1.2.4"]"#).unwrap();
    assert_eq!(node.add("other").unwrap().warning, None);
    // An agent that was removed changes nothing any more, and nobody waits for it.
    std::fs::remove_dir_all(node.path("pods")).unwrap();
    std::fs::remove_file(node.path("standing")).unwrap();
    std::fs::write(node.path("captured.json"), r#"["10.1.2.3"]"#).unwrap();
    let warning = node.add("other").unwrap().warning.unwrap();
    assert!(warning.contains("disarmed"), "{warning}");
}

#[test]
fn an_agent_that_cannot_take_an_address_from_another_pod_keeps_the_pod_from_starting() {
    for namespace in ["shop", "kube-system"] {
        let node = Node::new();
        let address = "10.1.2.3".parse().unwrap();
        let agent = agent(&node.path("gate.sock"), vec![Answer::Taken { address }]);
        assert_eq!(node.add(namespace).unwrap_err().code(), 11);
        assert_eq!(agent.join().unwrap().len(), 1);
    }
}

#[test]
fn a_pod_that_starts_without_the_agent_is_noted_until_it_is_gone() {
    let node = Node::new().with_agent_down();
    let notes = Notes::beside(&node.path("gate.sock"));
    assert_eq!(node.add("other").unwrap().warning, None);
    let left = notes.read();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].pod.to_string(), "other/web");
    assert_eq!(left[0].addresses, ["10.1.2.3".parse().unwrap()].into());
    serve(&Command::Del(attachment("other")), &node.input()).unwrap();
    assert_eq!(notes.read(), []);
}

#[test]
fn an_agent_that_comes_in_between_is_asked_and_needs_no_note() {
    let node = Node::new().with_agent_down();
    let socket = node.path("gate.sock");
    let broken = UnixListener::bind(&socket).unwrap();
    let next = socket.clone();
    let agent = thread::spawn(move || {
        // The first connection breaks, as that of an agent that is killed; the next agent answers.
        let stream = broken.accept().unwrap();
        std::fs::remove_file(&next).unwrap();
        let agent = agent(&next, vec![Answer::NotSelected]);
        drop(stream);
        agent.join().unwrap()
    });
    assert_eq!(node.add("other").unwrap().warning, None);
    assert_eq!(agent.join().unwrap().len(), 1);
    assert_eq!(Notes::beside(&socket).read(), []);
}

#[test]
fn the_clusters_own_pods_start_in_any_case() {
    let outcome = Node::new().with_agent_down().add("kube-system").unwrap();
    assert!(outcome.result.is_some());
    assert!(outcome.warning.unwrap().contains("ungated"));
}

#[test]
fn on_timeout_the_configuration_decides() {
    let node = Node {
        on_timeout: "Allow",
        ..Node::new()
    };
    let outcome = node.with_agent_down().add("shop").unwrap();
    assert!(outcome.result.is_some());
    assert!(outcome.warning.unwrap().contains("starts ungated"));
}

#[test]
fn an_agent_that_was_removed_disarms_it() {
    let outcome = Node::new().add("shop").unwrap();
    assert!(outcome.result.is_some());
    assert!(outcome.warning.unwrap().contains("disarmed"));
}

#[test]
fn what_is_not_kubernetes_passes() {
    let node = Node::new().with_agent_down();
    let command = Command::Add(Attachment {
        pod: None,
        ..attachment("shop")
    });
    assert!(serve(&command, &node.input()).unwrap().result.is_some());
}

#[test]
fn del_and_gc_succeed_without_the_agent_and_tell_it_otherwise() {
    let node = Node::new().with_agent_down();
    for command in [Command::Del(attachment("shop")), Command::Gc] {
        let outcome = serve(&command, &node.input()).unwrap();
        assert_eq!(outcome.result, None);
        assert!(outcome.warning.is_some());
    }
    let agent = agent(&node.path("gate.sock"), vec![Answer::Done, Answer::Done]);
    for command in [Command::Del(attachment("shop")), Command::Gc] {
        assert_eq!(serve(&command, &node.input()).unwrap(), Outcome::default());
    }
    let asked = agent.join().unwrap();
    assert!(matches!(
        asked.as_slice(),
        [Request::Del { .. }, Request::Gc { .. }]
    ));
}

#[test]
fn check_fails_only_when_the_agent_says_so() {
    let node = Node::new();
    let check = Command::Check(attachment("shop"));
    assert!(serve(&check, &node.input()).unwrap().warning.is_some());
    let why = "not programmed".to_owned();
    let answers = vec![Answer::Programmed, Answer::NotYet { why }];
    let agent = agent(&node.path("gate.sock"), answers);
    assert_eq!(serve(&check, &node.input()).unwrap(), Outcome::default());
    assert_eq!(serve(&check, &node.input()).unwrap_err().code(), 100);
    agent.join().unwrap();
}

#[test]
fn status_and_version_answer_without_the_agent() {
    let node = Node::new();
    assert_eq!(
        serve(&Command::Status, &node.input()).unwrap(),
        Outcome::default()
    );
    let versions = serve(&Command::Version, "").unwrap().result.unwrap();
    assert_eq!(versions["supportedVersions"][0], "0.3.0");
}
