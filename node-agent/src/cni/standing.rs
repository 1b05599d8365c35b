//! What the agent leaves on the node for the time when it does not answer.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// The name of the volume by which an agent's pod is known in the kubelet's folder. It is there from before the
/// pod's first container starts until the pod is gone from the node.
pub const MARKER_VOLUME: &str = "egressnat-agent-is-here";

/// How long after its last sign of life an agent whose pod is gone counts as removed: a pod that replaces it has
/// come by then.
pub const REMOVED_AFTER: Duration = Duration::from_secs(600);

/// What the agent last knew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The namespaces that any policy may select pods of.
    pub namespaces: BTreeSet<String>,
}

/// What is known of an agent that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It is down, and will come back: until then its word of old holds.
    Down(Standing),
    /// It was removed without taking the plugin with it: why that is sure.
    Removed(&'static str),
}

/// Tells an agent that is down from one that was removed.
///
/// It was removed where it left nothing on the node; and where no pod in the kubelet's folder `pods` is an
/// agent's and the agent's last sign of life (the time of the file) is older than [`REMOVED_AFTER`]. A pod that
/// crashes, waits for its image or for the node to boot is in that folder.
pub fn absent(file: &Path, pods: &Path, now: SystemTime) -> std::io::Result<Absent> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Absent::Removed("the agent left nothing on this node"));
        }
        Err(error) => return Err(error),
    };
    let seen = std::fs::metadata(file)?.modified()?;
    let silent = now.duration_since(seen).unwrap_or_default();
    if silent > REMOVED_AFTER && !is_here(pods)? {
        return Ok(Absent::Removed(
            "no pod of the agent is on this node, and none was for ten minutes",
        ));
    }
    // A file that cannot be read says nothing about any namespace; the agent writes it anew.
    Ok(Absent::Down(serde_json::from_str(&text)?))
}

/// Whether the kubelet has a pod of the agent.
fn is_here(pods: &Path) -> std::io::Result<bool> {
    let folders = match std::fs::read_dir(pods) {
        Ok(folders) => folders,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for folder in folders {
        let volume = folder?
            .path()
            .join("volumes/kubernetes.io~empty-dir")
            .join(MARKER_VOLUME);
        if volume.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        folder: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn with_standing(self) -> Self {
            std::fs::write(self.folder.path().join("standing"), r#"{"namespaces": ["shop"]}"#).unwrap();
            self
        }

        fn with_pod(self, volume: &str) -> Self {
            let pod = self
                .folder
                .path()
                .join("pods/u-1/volumes/kubernetes.io~empty-dir");
            std::fs::create_dir_all(pod.join(volume)).unwrap();
            self
        }

        fn absent(&self, silent: Duration) -> Absent {
            let (file, pods) = (
                self.folder.path().join("standing"),
                self.folder.path().join("pods"),
            );
            let now = SystemTime::now() + silent;
            absent(&file, &pods, now).unwrap()
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn an_agent_whose_pod_is_on_the_node_is_down_however_long() {
        let down = Absent::Down(Standing {
            namespaces: ["shop".to_owned()].into(),
        });
        let node = Node::new().with_standing().with_pod(MARKER_VOLUME);
        assert_eq!(node.absent(Duration::ZERO), down);
        assert_eq!(node.absent(LONG), down);
    }

    #[test]
    fn one_that_is_being_replaced_is_down_for_a_while() {
        let node = Node::new().with_standing().with_pod("scratch");
        assert!(matches!(node.absent(Duration::ZERO), Absent::Down(_)));
        assert!(matches!(node.absent(LONG), Absent::Removed(_)));
    }

    #[test]
    fn one_that_left_nothing_is_removed() {
        assert!(matches!(Node::new().absent(Duration::ZERO), Absent::Removed(_)));
    }
}
