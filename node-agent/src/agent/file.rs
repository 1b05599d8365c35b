//! What the agent keeps on the node, a JSON file each.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// What was written there, or nothing: a file that cannot be read is of no use.
pub(super) fn read<T: DeserializeOwned + Default>(file: &Path) -> T {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
        Err(error) => {
            warn!(file = %file.display(), %error, "failed to read");
            return T::default();
        }
    };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        warn!(file = %file.display(), %error, "is not what was written there");
        T::default()
    })
}

/// Replaces the file as a whole.
pub(super) fn write<T: Serialize>(file: &Path, value: &T) {
    let beside = file.with_extension("new");
    let written = serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|text| std::fs::write(&beside, text))
        .and_then(|()| std::fs::rename(&beside, file));
    if let Err(error) = written {
        warn!(file = %file.display(), %error, "failed to write");
    }
}
