//! nftables on the real kernel. Each test makes a network namespace of its own, so it needs root; `nft` is
//! only the witness.

mod ownership;
mod packets;
mod random;
mod statements;
mod transactions;

use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use egressnat_agent::diff::{NftStep, SetType};
use egressnat_agent::model::{Data, DataType, ElementKey, KeyType, Rule, Statement};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace that goes with the thread in it.
fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: these tests need root");
        test()
    };
    thread::scope(|scope| scope.spawn(body).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// What `nft` prints in the calling thread's network namespace.
fn nft(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("nft")
        .args(arguments)
        .output()
        .expect("nft is installed");
    let text = |octets| String::from_utf8(octets).expect("nft prints UTF-8");
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// The table as `nft` lists it.
fn listing() -> String {
    nft(&["list", "table", "inet", "egressnat"]).expect("the table is there")
}

const PODS: SetType = SetType {
    key: KeyType::Ipv4Addr,
    data: DataType::Mark,
    interval: false,
};

fn addr(text: &str) -> ElementKey {
    ElementKey::Addr(text.parse().expect("an address"))
}

fn range(text: &str) -> ElementKey {
    ElementKey::Range(text.parse().expect("an interval"))
}

/// Pod number `n` of the map [`PODS`].
fn pod(n: u32) -> (ElementKey, Data) {
    let address = std::net::Ipv4Addr::from(0x0af0_0000 + n);
    (ElementKey::Addr(address.into()), Data::Mark(n))
}

fn add_rule(chain: &str, statements: impl Into<Vec<Statement>>) -> NftStep {
    NftStep::AddRule(chain.into(), Rule(statements.into()))
}
