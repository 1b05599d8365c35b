//! What the plugin leaves on the node of pods that it let start while no agent answered: the API server tells of a pod's
//! addresses seconds after the pod has begun to send, and by then a policy may select it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spec::{PodName, ValidAttachment};

const FOLDER: &str = "notes";

/// A pod, and where it has which addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The pod.
    pub pod: PodName,
    /// Where its addresses are.
    pub attachment: ValidAttachment,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

#[cfg(test)]
impl Note {
    /// Of a pod `web` of the namespace `shop`, `u-1` in container `c0ffee`.
    pub fn example(addresses: &[&str]) -> Self {
        Self {
            pod: PodName {
                uid: "u-1".into(),
                namespace: "shop".into(),
                name: "web".into(),
            },
            attachment: ValidAttachment {
                container: "c0ffee".into(),
                interface: "eth0".into(),
            },
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }
}

/// The notes of a node, a file each.
#[derive(Clone, Debug)]
pub struct Notes {
    folder: PathBuf,
}

impl Notes {
    /// Beside the agent's socket, in a folder that a boot empties.
    pub fn beside(socket: &Path) -> Self {
        Self {
            folder: socket.with_file_name(FOLDER),
        }
    }

    /// Leaves a note, as a whole or not at all.
    pub fn leave(&self, note: &Note) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let file = self.file(&note.attachment);
        let beside = file.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(note)?)?;
        std::fs::rename(&beside, &file)
    }

    /// Removes a note, where there is one.
    pub fn remove(&self, attachment: &ValidAttachment) {
        // One that stays is of an interface that is gone: its addresses are the next pod's that has them.
        let _ = std::fs::remove_file(self.file(attachment));
    }

    /// The notes that can be read.
    pub fn read(&self) -> Vec<Note> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path());
        let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
        files
            .filter_map(|file| serde_json::from_slice(&std::fs::read(file).ok()?).ok())
            .collect()
    }

    /// By the specification neither name has a slash.
    fn file(&self, attachment: &ValidAttachment) -> PathBuf {
        let ValidAttachment { container, interface } = attachment;
        self.folder.join(format!("{container}.{interface}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_there_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::beside(&folder.path().join("gate.sock"));
        let note = Note::example(&["10.1.2.3"]);
        assert_eq!(notes.read(), []);
        notes.leave(&note).unwrap();
        assert_eq!(notes.read(), std::slice::from_ref(&note));
        notes.remove(&note.attachment);
        assert_eq!(notes.read(), []);
        notes.remove(&note.attachment);
    }
}
