//! What the agent keeps on the node, a JSON file each.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
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

/// Replaces a file of a folder that a boot empties, as a whole.
pub(super) fn write<T: Serialize>(file: &Path, value: &T) {
    put(file, value, |beside, text| {
        std::fs::write(beside, text)?;
        std::fs::rename(beside, file)
    });
}

/// Replaces a file of a folder that stays, as a whole.
pub(super) fn keep<T: Serialize>(file: &Path, value: &T) {
    put(file, value, |beside, text| replace(file, beside, text, 0o644));
}

/// By a file beside it.
fn put<T: Serialize>(file: &Path, value: &T, by: impl FnOnce(&Path, &[u8]) -> io::Result<()>) {
    let text = serde_json::to_vec(value).map_err(io::Error::from);
    if let Err(error) = text.and_then(|text| by(&file.with_extension("new"), &text)) {
        warn!(file = %file.display(), %error, "failed to write");
    }
}

/// Replaces a file as a whole, by one beside it: also where the node loses its power, there is the old one or the new one.
pub(super) fn replace(file: &Path, beside: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut new = File::create(beside)?;
    new.write_all(content)?;
    new.set_permissions(Permissions::from_mode(mode))?;
    new.sync_all()?;
    std::fs::rename(beside, file)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
