//! Network configurations: which one is active, and ours in its chain.
//!
//! Pure: texts in, texts out. A runtime loads the first file of its folder by name (`libcni.ConfFiles`, sorted), of the
//! extensions in [`EXTENSIONS`]. Where that one cannot be read, CRI-O takes the next that can, and containerd starts no
//! pods: so the first that can be read is the right one with both.

use serde_json::{Map, Value, json};

use super::PLUGIN;
use super::spec::VERSIONS;

/// Files that a runtime reads.
pub const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What a configuration file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    /// A chain of plugins.
    List(Map<String, Value>),
    /// One plugin alone: a chain cannot be added to it, it has to become one.
    Single(Map<String, Value>),
}

/// Why a file is no configuration that we can be added to.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("it is not a network configuration: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Neither a chain nor a plugin.
    #[error("it has neither plugins nor a type")]
    Empty,
    /// Chains came with version 0.3.0.
    #[error("its cniVersion {0:?} is older than 0.3.0: chained plugins need a newer one")]
    Old(String),
    /// The plugin would refuse it, and no pod start.
    #[error("its cniVersion {0:?} is none that egressnat-cni speaks: {VERSIONS:?}")]
    Unknown(String),
}

impl Network {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_str(text)?;
        let plugins = object.get("plugins").and_then(Value::as_array);
        match (plugins, object.get("type").and_then(Value::as_str)) {
            (Some(plugins), _) if !plugins.is_empty() => Ok(Self::List(object)),
            (_, Some(_)) => Ok(Self::Single(object)),
            _ => Err(ConfigError::Empty),
        }
    }

    /// Whether `ours` is the last plugin of the chain, just so.
    pub fn has(&self, ours: &Value) -> bool {
        let plugins = self.plugins();
        plugins.last() == Some(ours) && plugins.iter().filter(|p| is_ours(p)).count() == 1
    }

    /// Whether a plugin of ours is in the chain, whatever it says.
    pub fn mentions_us(&self) -> bool {
        self.plugins().iter().any(is_ours)
    }

    /// The configuration with `ours` as the last plugin of its chain, and nowhere else.
    pub fn with(&self, ours: &Value) -> Result<String, ConfigError> {
        let list = match self {
            Self::List(list) => list.clone(),
            Self::Single(plugin) => listed(plugin),
        };
        check_version(list.get("cniVersion"))?;
        Ok(chained(list, Some(ours)))
    }

    /// The configuration without us.
    pub fn without(&self) -> String {
        match self {
            Self::List(list) => chained(list.clone(), None),
            Self::Single(plugin) => written(plugin.clone()),
        }
    }

    /// Whether a runtime takes such a one from a file of this name: chains, and chains only, from those of lists.
    fn is_of(&self, name: &str) -> bool {
        name.ends_with(".conflist") == matches!(self, Self::List(_))
    }

    fn plugins(&self) -> &[Value] {
        match self {
            Self::List(list) => list
                .get("plugins")
                .and_then(Value::as_array)
                .map_or(&[], Vec::as_slice),
            Self::Single(_) => &[],
        }
    }
}

/// The file that the runtime uses, of names with their texts: the first by name that can be read.
pub fn active<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<(&'a str, Network)> {
    let mut files: Vec<(&str, &str)> = files
        .into_iter()
        .filter(|(name, _)| is_configuration(name))
        .collect();
    files.sort_unstable();
    files
        .into_iter()
        .find_map(|(name, text)| Some((name, Network::parse(text).ok().filter(|it| it.is_of(name))?)))
}

/// Whether a runtime reads files of this name.
pub fn is_configuration(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

/// The list with no plugin of ours but `last`.
fn chained(mut list: Map<String, Value>, last: Option<&Value>) -> String {
    if let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|plugin| !is_ours(plugin));
        plugins.extend(last.cloned());
    }
    written(list)
}

/// A single plugin as a chain of one: name and version belong to the chain.
fn listed(plugin: &Map<String, Value>) -> Map<String, Value> {
    let mut plugin = plugin.clone();
    let mut list = Map::new();
    for field in ["cniVersion", "name"] {
        if let Some(value) = plugin.remove(field) {
            list.insert(field.into(), value);
        }
    }
    list.insert("plugins".into(), json!([plugin]));
    list
}

fn check_version(version: Option<&Value>) -> Result<(), ConfigError> {
    let text = version.and_then(Value::as_str).unwrap_or_default();
    let mut numbers = text.split('.').map(|n| n.parse::<u32>().ok());
    let number = (numbers.next().flatten(), numbers.next().flatten());
    if VERSIONS.contains(&text) {
        Ok(())
    } else if number < (Some(0), Some(3)) {
        Err(ConfigError::Old(text.to_owned()))
    } else {
        Err(ConfigError::Unknown(text.to_owned()))
    }
}

fn written(object: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "disableCheck": true, "plugins": [
        {"type": "bridge", "ipMasq": true}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
    const SINGLE: &str =
        r#"{"cniVersion": "0.4.0", "name": "lab", "type": "bridge", "ipam": {"type": "host-local"}}"#;

    fn ours(timeout: u16) -> Value {
        json!({"type": PLUGIN, "timeoutSeconds": timeout})
    }

    fn parse(text: &str) -> Network {
        Network::parse(text).unwrap()
    }

    fn types(network: &Network) -> Vec<String> {
        let types = network.plugins().iter();
        types.map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_runtime_takes_chains_from_lists_and_single_plugins_from_the_others() {
        let found =
            |files: &[(&'static str, &'static str)]| active(files.iter().copied()).map(|(name, _)| name);
        assert_eq!(
            found(&[("10-a.conflist", SINGLE), ("20-b.conf", SINGLE)]),
            Some("20-b.conf")
        );
        assert_eq!(
            found(&[("10-a.conf", LIST), ("20-b.conflist", LIST)]),
            Some("20-b.conflist")
        );
        assert_eq!(found(&[("10-a.conflist", SINGLE)]), None);
    }

    #[test]
    fn a_version_that_the_plugin_does_not_speak_is_left_alone() {
        for version in ["1.2.0", "2.0.0", "0.3.7"] {
            let text = SINGLE.replace("0.4.0", version);
            let error = parse(&text).with(&ours(5)).unwrap_err();
            assert!(matches!(error, ConfigError::Unknown(_)), "{version}: {error}");
        }
    }

    #[test]
    fn ours_comes_last_and_the_rest_stays_as_it_is() {
        let with = parse(&parse(LIST).with(&ours(5)).unwrap());
        assert_eq!(types(&with), ["bridge", "portmap", PLUGIN]);
        assert!(with.has(&ours(5)) && with.mentions_us());
        assert_eq!(parse(&with.without()), parse(LIST), "and away again");
    }

    #[test]
    fn another_one_of_ours_is_replaced_and_one_before_others_moved() {
        let old = parse(&parse(LIST).with(&ours(5)).unwrap());
        assert!(!old.has(&ours(7)));
        let new = parse(&old.with(&ours(7)).unwrap());
        assert_eq!(types(&new), ["bridge", "portmap", PLUGIN]);
        let Network::List(mut list) = new.clone() else {
            panic!()
        };
        list["plugins"].as_array_mut().unwrap().rotate_right(1);
        let moved = Network::List(list);
        assert!(!moved.has(&ours(7)));
        assert_eq!(parse(&moved.with(&ours(7)).unwrap()), new);
    }

    #[test]
    fn a_single_plugin_becomes_a_chain() {
        let with = parse(&parse(SINGLE).with(&ours(5)).unwrap());
        assert_eq!(types(&with), ["bridge", PLUGIN]);
        let Network::List(list) = &with else { panic!() };
        assert_eq!(
            (list["cniVersion"].as_str(), list["name"].as_str()),
            (Some("0.4.0"), Some("lab"))
        );
        assert_eq!(list["plugins"][0].get("name"), None);
    }

    #[test]
    fn the_active_one_is_the_first_that_can_be_read() {
        let files = [
            ("20-later.conflist", LIST),
            ("10-broken.conflist", "{"),
            ("00-notes.txt", LIST),
            ("05-empty.conf", "{}"),
            ("15-lab.conf", SINGLE),
        ];
        let (name, network) = active(files).unwrap();
        assert_eq!(name, "15-lab.conf");
        assert_eq!(network, parse(SINGLE));
        assert_eq!(active([("10-broken.conf", "{")]), None);
    }

    #[test]
    fn versions_without_what_a_chain_needs_are_refused() {
        for version in ["0.2.0", "0.1", ""] {
            let text = format!(r#"{{"cniVersion": "{version}", "name": "lab", "type": "bridge"}}"#);
            let error = parse(&text).with(&ours(5)).unwrap_err();
            assert!(matches!(error, ConfigError::Old(_)), "{version}");
        }
    }
}
