use std::collections::BTreeMap;

use serde_json::json;

use super::*;

// As people write them: with spaces of their own, and keys in no order.
const LIST: &str = r#"{ "name": "lab",  "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}"#;
const OTHER: &str = r#"{"cniVersion": "1.0.0", "name": "new", "plugins": [ {"type": "ptp"} ]}"#;
const SINGLE: &str = r#"{ "type": "bridge", "cniVersion": "0.4.0", "name": "lab" }"#;

/// A node's folders; what is in that of network configurations before anything of ours is what has to be there after.
struct Node {
    folder: tempfile::TempDir,
    installer: Installer,
}

/// Files of a folder: texts and modes by name.
type Files = BTreeMap<String, (String, u32)>;

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for sub in ["image", "bin", "net.d"] {
            fs::create_dir(path(sub)).unwrap();
        }
        fs::write(path("image/plugin"), b"the program").unwrap();
        let installer = Installer {
            program: path("image/plugin"),
            programs: path("bin"),
            configurations: path("net.d"),
            entry: json!({"type": PLUGIN, "timeoutSeconds": 5}),
        };
        let node = Self { folder, installer };
        for (name, text) in files {
            node.write(name, text);
        }
        node
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("net.d").join(name)
    }

    /// As a CNI does, with a mode that is not the usual one.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
        fs::set_permissions(self.file(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn files(&self, sub: &str) -> Files {
        let entries = fs::read_dir(self.folder.path().join(sub)).unwrap();
        let file = |entry: io::Result<DirEntry>| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, (fs::read_to_string(&path).unwrap(), mode(&path)))
        };
        entries.map(file).collect()
    }

    fn names(&self) -> Vec<String> {
        self.files("net.d").into_keys().collect()
    }

    fn network(&self, name: &str) -> Network {
        Network::parse(&fs::read_to_string(self.file(name)).unwrap()).unwrap()
    }

    /// Arms the node. The active file, and whether it had to be changed; afterwards the active one is armed.
    fn armed(&self) -> Option<(String, bool)> {
        let Installed::Armed { file, changed } = self.installer.ensure().unwrap() else {
            return None;
        };
        let files = self.files("net.d");
        let (_, network) = active(files.iter().map(|(n, (t, _))| (n.as_str(), t.as_str()))).unwrap();
        assert!(network.has(&self.installer.entry), "{files:?}");
        Some((file, changed))
    }

    /// Takes the plugin out, and expects these files, byte for byte, with the mode that the CNI gave them.
    fn expect_after_removal(&self, files: &[(&str, &str)]) {
        assert!(self.installer.remove().unwrap());
        let expected = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), ((*text).to_owned(), 0o600)));
        assert_eq!(self.files("net.d"), expected.collect());
        assert_eq!(self.files("bin"), Files::new());
        assert!(!self.installer.remove().unwrap(), "there is nothing left");
    }
}

#[test]
fn without_a_configuration_of_the_cni_nothing_is_written() {
    let node = Node::new(&[]);
    assert_eq!(node.armed(), None);
    assert!(node.names().is_empty() && node.files("bin").is_empty());
    node.write("10-lab.conflist", LIST);
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), true)));
}

#[test]
fn it_comes_into_the_active_list_once_and_goes_without_a_trace() {
    let files = [("10-lab.conflist", LIST), ("20-other.conflist", OTHER)];
    let node = Node::new(&files);
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), true)));
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), false)));
    assert!(!node.network("20-other.conflist").mentions_us());
    let program = node.folder.path().join("bin").join(PLUGIN);
    assert_eq!(mode(&program), 0o755);
    assert_eq!(mode(&node.file("10-lab.conflist")), 0o600);
    node.expect_after_removal(&files);
}

#[test]
fn it_comes_back_after_the_cni_rewrites_its_file() {
    let node = Node::new(&[("10-lab.conflist", LIST)]);
    node.armed();
    node.write("10-lab.conflist", OTHER);
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), true)));
    node.expect_after_removal(&[("10-lab.conflist", OTHER)]);
}

#[test]
fn it_follows_the_cni_to_another_file() {
    let node = Node::new(&[("10-lab.conflist", LIST)]);
    node.armed();
    node.write("05-new.conflist", OTHER);
    assert_eq!(node.armed(), Some(("05-new.conflist".into(), true)));
    fs::remove_file(node.file("10-lab.conflist")).unwrap();
    assert_eq!(node.armed(), Some(("05-new.conflist".into(), false)));
    node.expect_after_removal(&[("05-new.conflist", OTHER)]);
}

#[test]
fn a_cni_that_renames_the_file_with_us_in_it_keeps_its_chain() {
    let node = Node::new(&[("10-lab.conflist", LIST)]);
    node.armed();
    fs::rename(node.file("10-lab.conflist"), node.file("30-lab.conflist")).unwrap();
    assert_eq!(node.armed(), Some(("30-lab.conflist".into(), false)));
    node.installer.remove().unwrap();
    assert_eq!(node.names(), ["30-lab.conflist"]);
    assert_eq!(node.network("30-lab.conflist"), Network::parse(LIST).unwrap());
}

#[test]
fn a_chain_that_the_cni_changed_around_us_stays_changed() {
    let node = Node::new(&[("10-lab.conflist", LIST)]);
    node.armed();
    let text = fs::read_to_string(node.file("10-lab.conflist")).unwrap();
    node.write("10-lab.conflist", &text.replace("bridge", "ptp"));
    node.armed();
    node.installer.remove().unwrap();
    assert_eq!(node.names(), ["10-lab.conflist"]);
    assert_eq!(
        node.network("10-lab.conflist"),
        Network::parse(&LIST.replace("bridge", "ptp")).unwrap()
    );
}

#[test]
fn other_settings_take_the_place_of_the_old_ones() {
    let mut node = Node::new(&[("10-lab.conflist", LIST)]);
    node.armed();
    node.installer.entry = json!({"type": PLUGIN, "timeoutSeconds": 7});
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), true)));
    node.expect_after_removal(&[("10-lab.conflist", LIST)]);
}

#[test]
fn a_single_plugin_is_set_aside_for_a_chain_and_put_back() {
    for name in ["10-lab.conf", "10-lab.json"] {
        let node = Node::new(&[(name, SINGLE)]);
        assert_eq!(node.armed(), Some((name.into(), true)));
        assert!(!node.file(name).exists() && original(&node.file(name)).exists());
        assert_eq!(node.armed(), Some(("10-lab.conflist".into(), false)));
        node.write(name, SINGLE);
        node.armed();
        node.armed();
        node.expect_after_removal(&[(name, SINGLE)]);
    }
}

#[test]
fn a_single_plugin_that_the_cni_has_written_anew_stays_as_it_is_now() {
    let node = Node::new(&[("10-lab.conf", SINGLE)]);
    node.armed();
    let anew = SINGLE.replace("bridge", "ptp");
    node.write("10-lab.conf", &anew);
    // Before anybody has looked.
    node.expect_after_removal(&[("10-lab.conf", &anew)]);
}

#[test]
fn a_single_plugin_beside_a_chain_of_its_name_takes_nothing_from_it() {
    let files = [("10-lab.conf", SINGLE), ("10-lab.conflist", OTHER)];
    let node = Node::new(&files);
    assert_eq!(node.armed(), Some(("10-lab.conf".into(), true)));
    node.expect_after_removal(&files);
}

#[test]
fn a_cni_that_goes_from_a_single_plugin_to_a_chain_stays_there() {
    let node = Node::new(&[("10-lab.conf", SINGLE)]);
    node.armed();
    node.write("10-lab.conflist", OTHER);
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), true)));
    node.expect_after_removal(&[("10-lab.conflist", OTHER)]);
}

#[test]
fn a_single_plugin_whose_chain_somebody_removed_is_put_back() {
    let node = Node::new(&[("10-lab.conf", SINGLE)]);
    node.armed();
    fs::remove_file(node.file("10-lab.conflist")).unwrap();
    node.expect_after_removal(&[("10-lab.conf", SINGLE)]);
}

#[test]
fn a_file_that_is_broken_or_half_written_is_left_alone() {
    let files = [
        ("05-broken.conflist", "{\"plugins\": [{"),
        ("10-lab.conflist", LIST),
    ];
    let node = Node::new(&files);
    assert_eq!(node.armed(), Some(("10-lab.conflist".into(), true)));
    node.expect_after_removal(&files);
    let alone = Node::new(&files[..1]);
    assert_eq!(alone.armed(), None);
    assert_eq!(alone.names(), ["05-broken.conflist"]);
}

#[test]
fn a_configuration_that_cannot_be_chained_is_left_as_it_is() {
    let old = SINGLE.replace("0.4.0", "0.2.0");
    let node = Node::new(&[("10-lab.conf", old.as_str())]);
    let error = node.installer.ensure().unwrap_err();
    assert!(matches!(error, InstallError::Config { .. }), "{error}");
    assert_eq!(node.names(), ["10-lab.conf"]);
}
