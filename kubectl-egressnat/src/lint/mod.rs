//! `lint`: what the API server and the operator would refuse, without asking them.
//!
//! In the order in which a policy would meet them: the CRD's schema, strictly; the CRD's CEL rules; the
//! operator's own check, for what CEL cannot see. A policy that one of them refuses does not meet the next.

mod schema;

use std::collections::BTreeMap;
use std::fmt;

use egressnat_crds::{EgressNATPolicy, EgressNATPolicySpec};
use egressnat_operator::valid::ValidPolicy;
use kube::CustomResourceExt;
use kube_cel::{ErrorKind, ValidationError, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::documents::Document;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How many policies were looked at.
    pub policies: usize,
    /// How many objects are of another kind, and were not.
    pub others: usize,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file and the document's number.
    pub place: String,
    /// The policy's name.
    pub policy: String,
    /// The field, where it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// A field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    field: String,
    message: String,
}

/// Checks the policies among the documents.
pub fn lint(documents: &[Document]) -> Report {
    let crd = Crd::new();
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    let mut problems = Vec::new();
    let policies: Vec<&Document> = documents.iter().filter(|d| d.is_policy()).collect();
    for document in &policies {
        let name = document.object["metadata"]["name"].as_str().unwrap_or_default();
        let mut found = crd.check(&document.object);
        if let Some(first) = seen
            .insert(name.to_owned(), &document.place)
            .filter(|_| !name.is_empty())
        {
            found.push(Finding {
                field: "metadata.name".into(),
                message: format!("{first} has the same name: the later one would take its place"),
            });
        }
        problems.extend(found.into_iter().map(|finding| Problem {
            place: document.place.clone(),
            policy: name.to_owned(),
            field: finding.field,
            message: finding.message,
        }));
    }
    Report {
        policies: policies.len(),
        others: documents.len() - policies.len(),
        problems,
    }
}

/// The CRD of policies, as this version would install it.
struct Crd {
    schema: Value,
    version: String,
    rules: Validator,
}

impl Crd {
    fn new() -> Self {
        let crd = EgressNATPolicy::crd();
        let version = &crd.spec.versions[0];
        let schema = version
            .schema
            .as_ref()
            .and_then(|s| s.open_api_v3_schema.as_ref());
        Self {
            schema: serde_json::to_value(schema).unwrap_or_default(),
            version: format!("{}/{}", crd.spec.group, version.name),
            rules: Validator::new(),
        }
    }

    fn check(&self, object: &Value) -> Vec<Finding> {
        if object["apiVersion"] != self.version.as_str() {
            return vec![Finding {
                field: "apiVersion".into(),
                message: format!("is not known: write {}", self.version),
            }];
        }
        let mut found = schema::check(&self.schema, object);
        let metadata = &object["metadata"];
        if !metadata["name"].is_string() && !metadata["generateName"].is_string() {
            found.push(Finding {
                field: "metadata.name".into(),
                message: "is missing".into(),
            });
        }
        if found.is_empty()
            && let Err(broken) = self.rules.validate(&self.schema, object, None)
        {
            found.extend(broken.iter().map(rule));
        }
        if found.is_empty() {
            found.extend(operators_own(&object["spec"]));
        }
        found
    }
}

/// A rule of the CRD that does not hold.
fn rule(error: &ValidationError) -> Finding {
    let message = match error.kind {
        ErrorKind::ValidationFailure => error.message.clone(),
        // An evaluation error is a refusal for the API server, too; the rest is this program's own limit.
        _ => format!(
            "rule {:?} could not be evaluated here ({}): try kubectl apply --dry-run=server",
            error.rule, error.message
        ),
    };
    Finding {
        field: error.field_path.clone(),
        message,
    }
}

fn operators_own(spec: &Value) -> Option<Finding> {
    let message = match EgressNATPolicySpec::deserialize(spec) {
        Ok(spec) => ValidPolicy::parse(&spec).err()?.to_string(),
        Err(error) => error.to_string(),
    };
    Some(Finding {
        field: String::new(),
        message,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let others = match self.others {
            0 => String::new(),
            others => format!(", {others} of another kind not looked at"),
        };
        let count = |n: usize, one: &str, more: &str| format!("{n} {}", if n == 1 { one } else { more });
        let policies = count(self.policies, "policy", "policies");
        let problems = count(self.problems.len(), "problem", "problems");
        writeln!(f, "{policies}, {problems}{others}")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.policy.is_empty() {
            write!(f, "policy {}: ", self.policy)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.message)
    }
}

#[cfg(test)]
mod tests;
