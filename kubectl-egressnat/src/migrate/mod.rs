//! From the policies of other egress gateways to ours.
//!
//! Pure: objects in, [`Migration`] out. What means something else here is said by a comment above the field;
//! what cannot be said here refuses the object, since half a policy would let packets out by the wrong
//! address.

mod antrea;
mod cilium;
mod draft;
mod labels;
mod ovn;
mod spidernet;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::documents::Document;
use draft::{Draft, Reason};
use spidernet::Gateways;

/// A kind that can be read.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its API group.
    pub group: &'static str,
    /// The version that a cluster serves.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The kind in the API's paths.
    pub plural: &'static str,
    convert: Option<Convert>,
}

type Convert = fn(&Object, &Gateways, &mut Draft);

/// The kinds that can be read, as a cluster is asked for them. Files may hold any version of their groups.
pub const SOURCES: [Source; 7] = [
    source(
        "cilium.io",
        "v2alpha1",
        "CiliumEgressNATPolicy",
        "ciliumegressnatpolicies",
        cilium::nat_policy,
    ),
    source(
        "cilium.io",
        "v2",
        "CiliumEgressGatewayPolicy",
        "ciliumegressgatewaypolicies",
        cilium::gateway_policy,
    ),
    source("crd.antrea.io", "v1beta1", "Egress", "egresses", antrea::egress),
    source("k8s.ovn.org", "v1", "EgressIP", "egressips", ovn::egress_ip),
    source(
        spidernet::GROUP,
        "v1beta1",
        "EgressPolicy",
        "egresspolicies",
        spidernet::policy,
    ),
    source(
        spidernet::GROUP,
        "v1beta1",
        "EgressClusterPolicy",
        "egressclusterpolicies",
        spidernet::policy,
    ),
    // Not a policy: it says which nodes the policies that name it mean.
    Source {
        group: spidernet::GROUP,
        version: "v1beta1",
        kind: spidernet::GATEWAY,
        plural: "egressgateways",
        convert: None,
    },
];

const fn source(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    convert: Convert,
) -> Source {
    Source {
        group,
        version,
        kind,
        plural,
        convert: Some(convert),
    }
}

/// What has become of the objects, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Migration {
    /// The policies.
    pub policies: Vec<Policy>,
    /// What cannot be said here.
    pub refused: Vec<Refusal>,
    /// Where objects of other kinds stand.
    pub ignored: Vec<String>,
}

/// An EgressNATPolicy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Policy {
    /// What it was.
    pub from: String,
    /// Its name.
    pub name: String,
    /// The document, in YAML with comments.
    pub text: String,
}

/// Why an object has no counterpart here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{object}: {reason}")]
pub struct Refusal {
    /// The object and where it stands.
    pub object: String,
    /// Its field, what is the matter, and what to do instead.
    pub reason: Reason,
}

/// An object of one of [`SOURCES`].
#[derive(Debug)]
struct Object<'a> {
    kind: &'static str,
    name: &'a str,
    namespace: Option<&'a str>,
    /// Without the fields that are null.
    spec: Value,
    status: &'a Value,
}

/// Migrates the policies among the objects.
pub fn migrate(documents: &[Document]) -> Migration {
    let gateways = Gateways::among(documents);
    let (mut migration, mut taken) = (Migration::default(), BTreeMap::new());
    for document in documents {
        let Some(source) = SOURCES.iter().find(|s| s.is_kind_of(document)) else {
            migration.ignored.push(document.place.clone());
            continue;
        };
        let Some(convert) = source.convert else { continue };
        let object = Object::of(source, document);
        let from = format!("{object} ({})", document.place);
        match object.policy(convert, &gateways, &from, &mut taken) {
            Ok(policy) => migration.policies.push(policy),
            Err(reasons) => migration
                .refused
                .extend(reasons.into_iter().map(|reason| Refusal {
                    object: from.clone(),
                    reason,
                })),
        }
    }
    migration
}

impl Source {
    fn is_kind_of(&self, document: &Document) -> bool {
        let version = document.object["apiVersion"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        group == self.group && document.object["kind"] == self.kind
    }
}

impl<'a> Object<'a> {
    fn of(source: &Source, document: &'a Document) -> Self {
        let metadata = &document.object["metadata"];
        Self {
            kind: source.kind,
            name: metadata["name"].as_str().unwrap_or_default(),
            namespace: metadata["namespace"].as_str(),
            spec: without_nulls(&document.object["spec"]),
            status: &document.object["status"],
        }
    }

    /// The spec as the kind's own type, which knows all of its fields.
    fn read<T: for<'de> Deserialize<'de>>(&self, draft: &mut Draft) -> Option<T> {
        let read = T::deserialize(&self.spec);
        let refuse = |error: serde_json::Error| {
            draft.refuse(
                "spec",
                error.to_string(),
                "correct the object, or write the policy by hand where the field is newer than this program",
            );
        };
        read.map_err(refuse).ok()
    }

    /// The name of the policy: one for the whole cluster.
    fn policy_name(&self) -> String {
        match self.namespace {
            Some(namespace) => format!("{namespace}-{}", self.name),
            None => self.name.to_owned(),
        }
    }

    /// Converts and checks; `taken` has the names of policies given before, with what they were.
    fn policy(
        &self,
        convert: Convert,
        gateways: &Gateways,
        from: &str,
        taken: &mut BTreeMap<String, String>,
    ) -> Result<Policy, Vec<Reason>> {
        let (name, mut draft) = (self.policy_name(), Draft::default());
        convert(self, gateways, &mut draft);
        if self.name.is_empty() {
            draft.refuse("metadata.name", "missing", "name the object");
        } else if let Some(other) = taken.get(&name) {
            let problem = format!("policy {name} is already made of {other}");
            draft.refuse("metadata.name", problem, "rename one of them in the input");
        }
        let text = draft.document(&name, from)?;
        taken.insert(name.clone(), from.to_owned());
        Ok(Policy {
            from: from.to_owned(),
            name,
            text,
        })
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.map(|n| format!("{n}/")).unwrap_or_default();
        write!(f, "{} {namespace}{}", self.kind, self.name)
    }
}

/// The policies as one YAML stream.
impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policies
            .iter()
            .try_for_each(|p| write!(f, "---\n{}", p.text))
    }
}

/// Go writes absent lists and pointers as null.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}
