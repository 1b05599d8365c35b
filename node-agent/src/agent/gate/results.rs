//! The runtime's cached results of ADD on this node, and what changes among them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{DirEntry, Metadata, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::watched::Watched;
use crate::cni::notes::Note;
use crate::cni::results::{FOLDER, LONGEST, parse};
use crate::cni::spec::ValidAttachment;

/// So many files are known at once: two for each pod, and there is room for those that nobody has removed.
const MOST_FILES: usize = 4096;

/// The cached results.
pub struct Results {
    folder: PathBuf,
    watched: Option<Watched>,
    files: BTreeMap<OsString, File>,
    /// What was last said of the folder.
    is_there: Option<bool>,
    is_full: bool,
}

/// What is known of a file.
#[derive(Clone)]
struct File {
    version: Version,
    /// Whose it is. `None` for one that says nothing of a pod.
    attachment: Option<ValidAttachment>,
}

/// Inode, length, and when it was written, in seconds and nanoseconds: one that is another has another.
type Version = (u64, u64, i64, i64);

/// What is another than before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces that have come, each with addresses of its own.
    pub come: Vec<Note>,
    /// Interfaces that went before those came.
    pub gone: Vec<ValidAttachment>,
}

impl Results {
    /// Those below libcni's cache. Without the kernel's word that something has changed, there are none.
    pub fn below(cache: &Path) -> Self {
        let folder = cache.join(FOLDER);
        let watched = Watched::folder(&folder).inspect_err(|error| {
            warn!(folder = %folder.display(), %error, "failed to watch the runtime's cached results");
        });
        Self {
            watched: watched.ok(),
            folder,
            files: BTreeMap::new(),
            is_there: None,
            is_full: false,
        }
    }

    /// Waits until something may have changed. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) {
        match &mut self.watched {
            Some(watched) => watched.changed().await,
            None => std::future::pending().await,
        }
    }

    /// What has changed since the last look. Only what is new is read.
    pub fn look(&mut self) -> Changes {
        let entries = std::fs::read_dir(&self.folder);
        self.tell_of_folder(entries.as_ref().err());
        let mut before = std::mem::take(&mut self.files);
        let (mut come, mut gone, mut refused, mut left_out) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for entry in entries.into_iter().flatten().flatten() {
            let Some(metadata) = metadata_of(&entry) else {
                continue;
            };
            let (name, version) = (entry.file_name(), version_of(&metadata));
            let file = before.remove(&name);
            if let Some(file) = file.as_ref().filter(|file| file.version == version) {
                self.files.insert(name, file.clone());
                continue;
            }
            gone.extend(file.and_then(|file| file.attachment));
            if self.files.len() + before.len() >= MOST_FILES {
                left_out += 1;
                continue;
            }
            let note = read(&entry.path()).unwrap_or_else(|error| {
                refused.extend(error.map(|error| (name.clone(), error)));
                None
            });
            let attachment = note.as_ref().map(|note| note.attachment.clone());
            come.extend(note.map(|note| (version, note)));
            self.files.insert(name, File { version, attachment });
        }
        self.tell_of_files(&refused, left_out);
        gone.extend(before.into_values().filter_map(|file| file.attachment));
        let come = newest(come);
        Changes { come, gone }
    }

    /// Said once, until it is otherwise.
    fn tell_of_folder(&mut self, error: Option<&io::Error>) {
        let is_there = error.is_none();
        if self.is_there.replace(is_there) == Some(is_there) {
            return;
        }
        let folder = self.folder.display();
        match error {
            None => info!(%folder, "pods' addresses are known from the runtime's cached results"),
            Some(error) => info!(
                %folder, %error,
                "no cached results of the runtime: without the start gate, pods' addresses are known when the API \
                 server knows them"
            ),
        }
    }

    /// One line a look, however many there are.
    fn tell_of_files(&mut self, refused: &[(OsString, io::Error)], left_out: usize) {
        if let Some((file, error)) = refused.first() {
            let (file, files) = (file.display(), refused.len());
            warn!(%file, %error, files, "cached results of the runtime say nothing");
        }
        let was_full = std::mem::replace(&mut self.is_full, left_out > 0);
        if self.is_full && !was_full {
            let folder = self.folder.display();
            warn!(%folder, left_out, "more than {MOST_FILES} cached results: those that come are left out");
        }
    }
}

/// Of a file that is one: no link is followed.
fn metadata_of(entry: &DirEntry) -> Option<Metadata> {
    entry.metadata().ok().filter(Metadata::is_file)
}

fn version_of(metadata: &Metadata) -> Version {
    (
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

/// What a file says. The error is `None` for one that is not complete yet, or gone: that will be told.
fn read(path: &Path) -> Result<Option<Note>, Option<io::Error>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.size() > LONGEST {
        return Err(Some(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    parse(&text).map_err(|error| match error.is_incomplete() {
        true => None,
        false => Some(io::Error::other(error)),
    })
}

/// Those that are in force: an address is the last one's that was given it, whatever others have not been removed.
fn newest(mut notes: Vec<(Version, Note)>) -> Vec<Note> {
    notes.sort_by_key(|((_, _, seconds, nanoseconds), _)| std::cmp::Reverse((*seconds, *nanoseconds)));
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    let notes = notes.into_iter().map(|(_, note)| note);
    notes
        .filter(|note| {
            let free = note.addresses.is_disjoint(&taken);
            taken.extend(&note.addresses);
            free
        })
        .collect()
}

#[cfg(test)]
mod tests;
