//! An OCI image archive of one layer, the same bytes for the same content.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::libraries;
use crate::error::{Context, Result};

type Archive = Builder<Vec<u8>>;

/// An image to be written.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full reference with the tag.
    pub reference: String,
    /// What a container runs.
    pub entrypoint: Vec<String>,
    /// `uid:gid` that it runs as.
    pub user: String,
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Copy(PathBuf),
    Text(String),
    Link(PathBuf),
}

impl Image {
    /// An empty image that runs as root.
    #[must_use]
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            entrypoint: Vec::new(),
            user: "0:0".into(),
            entries: BTreeMap::new(),
        }
    }

    /// Puts a program at `path`, and the libraries that it is linked with at the paths they have here.
    ///
    /// # Errors
    /// When the program or a library is not there.
    pub fn add_program(&mut self, program: &Path, path: &str) -> Result<()> {
        for library in libraries::of(program)? {
            self.entries.insert(library.clone(), Entry::Copy(library));
        }
        self.entries.insert(path.into(), Entry::Copy(program.to_owned()));
        Ok(())
    }

    /// Puts a symbolic link at `path`.
    pub fn add_link(&mut self, path: &str, target: &str) {
        self.entries.insert(path.into(), Entry::Link(target.into()));
    }

    /// Puts a text file at `path`.
    pub fn add_text(&mut self, path: &str, text: &str) {
        self.entries.insert(path.into(), Entry::Text(text.to_owned()));
    }

    /// Writes the archive, replacing an older one whole or not at all; returns the image's digest.
    ///
    /// # Errors
    /// When a file cannot be read or the archive not be written.
    pub fn write(&self, archive: &Path) -> Result<String> {
        let mut files = BTreeMap::new();
        let layer = blob(
            &mut files,
            "application/vnd.oci.image.layer.v1.tar",
            self.layer()?,
        );
        let config = self.config(&layer["digest"]);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob(&mut files, "application/vnd.oci.image.config.v1+json", to_bytes(&config)),
            "layers": [layer],
        });
        let mut entry = blob(
            &mut files,
            "application/vnd.oci.image.manifest.v1+json",
            to_bytes(&manifest),
        );
        // The first is what skopeo, podman and docker read, the second what containerd reads.
        entry["annotations"] = json!({
            "org.opencontainers.image.ref.name": self.reference,
            "io.containerd.image.name": self.reference,
        });
        let digest = entry["digest"].as_str().unwrap_or_default().to_owned();
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        files.insert("index.json".into(), to_bytes(&index));
        files.insert(
            "oci-layout".into(),
            to_bytes(&json!({"imageLayoutVersion": "1.0.0"})),
        );
        write_archive(archive, files)?;
        Ok(digest)
    }

    fn config(&self, layer: &Value) -> Value {
        json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "User": self.user,
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for folder in self.folders() {
            append(&mut archive, EntryType::Directory, &folder.join(""), 0o755, &[])?;
        }
        for (path, entry) in &self.entries {
            match entry {
                Entry::Copy(source) => append_copy(&mut archive, path, source)?,
                Entry::Text(text) => append(&mut archive, EntryType::Regular, path, 0o644, text.as_bytes())?,
                Entry::Link(target) => append_link(&mut archive, path, target)?,
            }
        }
        archive
            .into_inner()
            .context(|| format!("write a layer of {}", self.reference))
    }

    fn folders(&self) -> BTreeSet<&Path> {
        let ancestors = self.entries.keys().flat_map(|path| path.ancestors().skip(1));
        ancestors.filter(|path| path.parent().is_some()).collect()
    }
}

fn append_copy(archive: &mut Archive, path: &Path, source: &Path) -> Result<()> {
    let read = || format!("read {}", source.display());
    let content = fs::read(source).context(read)?;
    let executable = fs::metadata(source).context(read)?.permissions().mode() & 0o111 != 0;
    append(
        archive,
        EntryType::Regular,
        path,
        if executable { 0o755 } else { 0o644 },
        &content,
    )
}

fn append_link(archive: &mut Archive, path: &Path, target: &Path) -> Result<()> {
    let mut header = header(EntryType::Symlink, 0o777, 0);
    archive
        .append_link(&mut header, relative(path), target)
        .context(|| format!("archive {}", path.display()))
}

fn append(archive: &mut Archive, kind: EntryType, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, content.len() as u64);
    archive
        .append_data(&mut header, relative(path), content)
        .context(|| format!("archive {}", path.display()))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Adds a blob to the archive's files and returns its descriptor.
fn blob(files: &mut BTreeMap<PathBuf, Vec<u8>>, media_type: &str, content: Vec<u8>) -> Value {
    let digest = digest(&content);
    let size = content.len();
    files.insert(Path::new("blobs").join(digest.replace(':', "/")), content);
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn write_archive(path: &Path, files: BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let write = || format!("write {}", path.display());
    let mut archive = Builder::new(Vec::new());
    for (name, content) in files {
        append(&mut archive, EntryType::Regular, &name, 0o644, &content)?;
    }
    let bytes = archive.into_inner().context(write)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context(write)?;
    }
    let unfinished = path.with_extension("part");
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, path))
        .context(write)
}
