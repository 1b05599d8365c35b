//! Manifests: files of YAML or JSON documents.

use std::io::Read;
use std::path::{Path, PathBuf};

use egressnat_crds::GROUP;
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;

/// An object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Where it stands: the file and, among several, its number.
    pub place: String,
    /// The object.
    pub object: Value,
}

/// The objects of all files; `-` is standard input.
pub fn read(files: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for path in files {
        documents.extend(parse(&path.display().to_string(), &text(path)?)?);
    }
    Ok(documents)
}

/// The objects of a text. Empty documents are left out, items of lists stand for themselves.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let place = format!("{file}, document {}", index + 1);
        let object = Value::deserialize(document).map_err(|source| Error::Yaml {
            place: place.clone(),
            source,
        })?;
        match object["items"].as_array() {
            Some(items) => documents.extend(items.iter().enumerate().map(|(item, object)| Document {
                place: format!("{place}, item {}", item + 1),
                object: object.clone(),
            })),
            None if object.is_null() => {}
            None => documents.push(Document { place, object }),
        }
    }
    Ok(documents)
}

impl Document {
    /// Whether it is an EgressNATPolicy, of whatever version.
    pub fn is_policy(&self) -> bool {
        let version = self.object["apiVersion"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or(version, |(group, _)| group);
        self.object["kind"] == "EgressNATPolicy" && group == GROUP
    }
}

fn text(path: &Path) -> Result<String, Error> {
    let read = match path.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(path),
    };
    read.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_is_found_with_its_place() {
        let text = "---\n---\nkind: A\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n";
        let found = parse("f.yaml", text).unwrap();
        let kinds: Vec<(&str, &Value)> = found
            .iter()
            .map(|d| (d.place.as_str(), &d.object["kind"]))
            .collect();
        assert_eq!(kinds.len(), 3, "{kinds:?}");
        assert_eq!(kinds[1].1, "B");
        assert!(kinds[2].0.starts_with("f.yaml, document ") && kinds[2].0.ends_with("item 2"));
        assert!(parse("f.yaml", "a: [").is_err());
    }

    #[test]
    fn only_our_policies_are_policies() {
        for (text, ours) in [
            ("{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy}", true),
            ("{apiVersion: egressnat.io/v9, kind: EgressNATPolicy}", true),
            ("{apiVersion: egressnat.io/v1alpha1, kind: EgressPlan}", false),
            ("{apiVersion: v1, kind: EgressNATPolicy}", false),
            ("[1]", false),
        ] {
            assert_eq!(parse("f", text).unwrap()[0].is_policy(), ours, "{text}");
        }
    }
}
