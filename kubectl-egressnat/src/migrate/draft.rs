//! A policy in the making: fields, comments, and what cannot be said.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use super::text;
use crate::documents;
use crate::lint::lint;

/// A field, what is the matter with it, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The field of the object, or of the policy that it would become.
    pub field: String,
    /// What is the matter.
    pub problem: String,
    /// What to do instead; empty where the problem says it.
    pub instead: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)?;
        match self.instead.as_str() {
            "" => Ok(()),
            instead => write!(f, "; {instead}"),
        }
    }
}

/// A policy in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    fields: BTreeMap<&'static str, Value>,
    comments: BTreeMap<&'static str, Vec<String>>,
    reasons: Vec<Reason>,
}

impl Draft {
    /// Sets a field of the spec.
    pub fn set<T: Serialize>(&mut self, field: &'static str, value: &T) {
        self.fields.insert(field, json!(value));
    }

    /// Says above the field what is different.
    pub fn comment(&mut self, field: &'static str, text: impl Into<String>) {
        self.comments.entry(field).or_default().push(text.into());
    }

    /// Says that a field of the object has no counterpart.
    pub fn refuse(
        &mut self,
        field: impl Into<String>,
        problem: impl Into<String>,
        instead: impl Into<String>,
    ) {
        self.reasons.push(Reason {
            field: field.into(),
            problem: problem.into(),
            instead: instead.into(),
        });
    }

    /// The priority, and who wins in the other product.
    pub fn priority(&mut self, priority: i64, there: &str) {
        self.set("priority", &priority);
        self.comment(
            "priority",
            format!(
                "Where several policies select the same pod and destination, the higher priority decides here, \
                 then the older policy, then the name; there, {there}"
            ),
        );
    }

    /// Sets a list of CIDRs, without the host bits that others overlook.
    pub fn cidrs(&mut self, field: &'static str, cidrs: &[String]) {
        let mut nets = Vec::with_capacity(cidrs.len());
        for text in cidrs {
            match text.parse::<IpNet>() {
                Ok(net) if net != net.trunc() => {
                    self.comment(field, format!("{text} had host bits set, which mean nothing."));
                    nets.push(net.trunc().to_string());
                }
                // What is no CIDR stays as it is: the check of the whole policy names it.
                _ => nets.push(text.clone()),
            }
        }
        if !nets.is_empty() {
            self.set(field, &nets);
        }
    }

    /// Sets the addresses by which the gateway is found: at most one of each family, of which `field` of the
    /// object says more.
    pub fn addresses(&mut self, field: &str, addresses: &[String]) {
        match addresses {
            [one] => self.set("egressSourceIP", one),
            [a, b] if is_v6(a) != is_v6(b) => self.set("egressSourceIPs", &addresses),
            _ => self.refuse(
                field,
                format!("{} are several addresses of one family", addresses.join(", ")),
                "write them as egressSourceIPs by hand, of which a pod keeps one; or drop all but one",
            ),
        }
        self.families(addresses);
    }

    /// Says what is dropped for want of an address of its family. The destinations must have been set.
    pub fn families(&mut self, addresses: &[String]) {
        let destinations = self.fields.get("destinationCIDRs").and_then(Value::as_array);
        let means = |v6: bool| match destinations {
            Some(list) => list
                .iter()
                .filter_map(Value::as_str)
                .any(|cidr| is_v6(cidr) == v6),
            None => true,
        };
        let lacks = |v6: bool| !addresses.is_empty() && addresses.iter().all(|a| is_v6(a) != v6);
        let families = [(false, "IPv4", "IPv6"), (true, "IPv6", "IPv4")];
        let Some((_, family, other)) = families.into_iter().find(|(v6, ..)| means(*v6) && lacks(*v6)) else {
            return;
        };
        self.comment(
            "noGateway",
            format!(
                "There is no {family} egress address: by Drop, the pods' {family} packets to these destinations \
                 are dropped too. Name {other} ranges only in destinationCIDRs to leave them alone."
            ),
        );
    }

    /// Everything outside the cluster is meant, there and here.
    pub fn every_destination(&mut self) {
        self.comment(
            "destinationCIDRs",
            "destinationCIDRs is left out: everything outside the cluster, as there. It can say less here.",
        );
    }

    /// Packets without a gateway are dropped, and this is said.
    pub fn fail_closed(&mut self) {
        self.comment(
            "noGateway",
            "While no gateway is ready, or none holds the address, the pods' packets are dropped and counted. \
             Write NodeIP to let them leave as those of other pods do.",
        );
    }

    /// The document in YAML, or what cannot be said. Whatever is given can be applied: it has been read back
    /// and checked.
    pub fn document(mut self, name: &str, from: &str) -> Result<String, Vec<Reason>> {
        self.set("noGateway", &"Drop");
        if !self.reasons.is_empty() {
            return Err(self.reasons);
        }
        let unwritten = |problem: String| vec![Reason::of_policy("", problem)];
        let text = text::document(name, from, &self.fields, &self.comments);
        let text = text.map_err(|e| unwritten(e.to_string()))?;
        let documents = documents::parse(from, &text).map_err(|e| unwritten(e.to_string()))?;
        let problems = lint(&documents).problems;
        match problems.is_empty() {
            true => Ok(text),
            false => Err(problems
                .into_iter()
                .map(|p| Reason::of_policy(&p.field, p.message))
                .collect()),
        }
    }
}

impl Reason {
    /// Of the policy that the object would become; the problem says what to do.
    fn of_policy(field: &str, problem: String) -> Self {
        Self {
            field: if field.is_empty() {
                "spec".into()
            } else {
                field.into()
            },
            problem,
            instead: String::new(),
        }
    }
}

/// Whether the address or CIDR is of IPv6.
pub(super) fn is_v6(text: &str) -> bool {
    text.contains(':')
}

/// A text that is not empty: Go writes absent texts as empty ones.
pub(super) fn given(text: Option<&String>) -> Option<&String> {
    text.filter(|t| !t.is_empty())
}
