//! Steps to the messages of one transaction.

use std::collections::{BTreeMap, BTreeSet};

use super::batch::{BaseSpec, Batch, SetSpec, Transaction, Verb};
use super::elements;
use super::error::NftError;
use super::lower::{self, lower};
use super::name::Name;
use super::types::{byte_orders, data_type, hook_number, key_type};
use crate::diff::{NftStep, SetType};
use crate::model::{BaseChain, ChainKind, Data, DataType, ElementKey, Rule};

/// What encoding has to know of the kernel.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Flags with which the table of that step is made; `None` to leave those that it has.
    pub table_flags: BTreeMap<usize, Option<u32>>,
    /// The data types of the kernel's sets that rules use as sets. Those that the steps make are known.
    pub sets: BTreeMap<String, DataType>,
}

const CREATE: i32 = libc::NLM_F_CREATE;
const EXCL: i32 = libc::NLM_F_EXCL;

/// The steps as one transaction.
pub fn encode(steps: &[NftStep], context: &Context) -> Result<Transaction, NftError> {
    let mut sets = context.sets.clone();
    let mut batch = Batch::new().map_err(|reason| invalid(&NftStep::AddTable, reason))?;
    for (number, step) in steps.iter().enumerate() {
        if let NftStep::AddSet(name, ty) = step {
            sets.insert(name.clone(), ty.data);
        }
        batch.begin_step(number);
        let flags = context.table_flags.get(&number).copied().flatten();
        message(&mut batch, step, flags, &sets).map_err(|reason| invalid(step, reason))?;
    }
    Ok(batch.finalize())
}

/// The transaction that finds out whether the kernel has the table flags, and changes nothing: its second
/// message is always refused. The answer is that to step 0.
pub fn probe(flags: u32) -> Result<Transaction, &'static str> {
    let nowhere = Name::new("egressnat-probe")?;
    let mut batch = Batch::new()?;
    batch.begin_step(0);
    batch.table(verb(libc::NFT_MSG_NEWTABLE, CREATE), Some(&nowhere), Some(flags));
    batch.begin_step(1);
    batch.table(
        verb(libc::NFT_MSG_NEWTABLE, CREATE | EXCL),
        Some(&nowhere),
        Some(flags),
    );
    Ok(batch.finalize())
}

/// The sets that the steps' rules use as sets and that the steps do not make themselves.
pub fn sets_to_know(steps: &[NftStep]) -> BTreeSet<&str> {
    let made: BTreeSet<_> = steps
        .iter()
        .filter_map(|step| match step {
            NftStep::AddSet(name, _) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let rules = steps.iter().filter_map(|step| match step {
        NftStep::AddRule(_, rule) => Some(rule),
        _ => None,
    });
    rules
        .flat_map(lower::sets_used)
        .filter(|name| !made.contains(name))
        .collect()
}

/// What is made must not be there yet, the table apart: a step that finds it has been planned on a wrong idea
/// of the kernel.
fn message(
    batch: &mut Batch,
    step: &NftStep,
    table_flags: Option<u32>,
    sets: &BTreeMap<String, DataType>,
) -> Result<(), &'static str> {
    match step {
        NftStep::AddTable => batch.table(verb(libc::NFT_MSG_NEWTABLE, CREATE), None, table_flags),
        NftStep::DeleteTable => batch.table(verb(libc::NFT_MSG_DELTABLE, 0), None, None),
        NftStep::AddCounter(name) => {
            batch.counter(verb(libc::NFT_MSG_NEWOBJ, CREATE | EXCL), &Name::new(name)?);
        }
        NftStep::DeleteCounter(name) => batch.counter(verb(libc::NFT_MSG_DELOBJ, 0), &Name::new(name)?),
        NftStep::AddSet(name, ty) => {
            let verb = verb(libc::NFT_MSG_NEWSET, CREATE | EXCL);
            batch.set(verb, &Name::new(name)?, Some(&set_spec(*ty)?));
        }
        NftStep::DeleteSet(name) => batch.set(verb(libc::NFT_MSG_DELSET, 0), &Name::new(name)?, None),
        NftStep::AddElements(name, ty, elements) => {
            let verb = verb(libc::NFT_MSG_NEWSETELEM, CREATE | EXCL);
            add_elements(batch, verb, &Name::new(name)?, (*ty, true), elements)?;
        }
        NftStep::DeleteElements(name, ty, elements) => {
            let verb = verb(libc::NFT_MSG_DELSETELEM, 0);
            add_elements(batch, verb, &Name::new(name)?, (*ty, false), elements)?;
        }
        NftStep::AddChain(name, base) => {
            let base = base.as_ref().map(base_spec);
            let verb = verb(libc::NFT_MSG_NEWCHAIN, CREATE | EXCL);
            batch.chain(verb, &Name::new(name)?, base.as_ref());
        }
        NftStep::FlushChain(name) => {
            batch.rule(
                verb(libc::NFT_MSG_DELRULE, 0),
                &Name::new(name)?,
                Vec::new(),
                None,
            )?;
        }
        NftStep::DeleteChain(name) => batch.chain(verb(libc::NFT_MSG_DELCHAIN, 0), &Name::new(name)?, None),
        NftStep::AddRule(chain, rule) => add_rule(batch, chain, rule, sets)?,
    }
    Ok(())
}

fn add_elements(
    batch: &mut Batch,
    verb: Verb,
    name: &Name,
    (ty, with_data): (SetType, bool),
    elements: &[(ElementKey, Data)],
) -> Result<(), &'static str> {
    let mut raw = Vec::with_capacity(elements.len());
    for (key, data) in elements {
        raw.extend(elements::encode(ty, key, data, with_data)?);
    }
    batch.elements(verb, name, &raw)
}

fn add_rule(
    batch: &mut Batch,
    chain: &str,
    rule: &Rule,
    sets: &BTreeMap<String, DataType>,
) -> Result<(), &'static str> {
    let exprs = lower(rule, sets)?;
    let verb = verb(libc::NFT_MSG_NEWRULE, CREATE | libc::NLM_F_APPEND);
    batch.rule(verb, &Name::new(chain)?, exprs, Some(&Name::new(&rule.tag())?))
}

fn set_spec(ty: SetType) -> Result<SetSpec, &'static str> {
    if !elements::is_supported(ty) {
        return Err("only addresses come in intervals");
    }
    let data = data_type(ty.data);
    let interval = if ty.interval { libc::NFT_SET_INTERVAL } else { 0 };
    let map = if data.is_some() { libc::NFT_SET_MAP } else { 0 };
    Ok(SetSpec {
        flags: (interval | map) as u32,
        key: key_type(ty.key),
        data,
        user_data: byte_orders(ty),
    })
}

fn base_spec(base: &BaseChain) -> BaseSpec {
    BaseSpec {
        kind: match base.kind {
            ChainKind::Filter => c"filter",
            ChainKind::Nat => c"nat",
        },
        hook: hook_number(base.hook),
        priority: base.priority,
    }
}

fn verb(kind: i32, flags: i32) -> Verb {
    Verb {
        kind,
        flags: libc::NLM_F_REQUEST | flags,
    }
}

fn invalid(step: &NftStep, reason: &'static str) -> NftError {
    NftError::Invalid {
        step: step.to_string(),
        reason,
    }
}
