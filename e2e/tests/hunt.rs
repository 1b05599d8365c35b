//! The leak hunt as CI runs it: a thousand pods and more, a hundred changes and more, every packet judged. That it can
//! fail is what `make hunt-proof` shows.
//!
//! `HUNT_SEED` makes one again.

use std::{
    env,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use egressnat_e2e::{
    hunt::{self, Settings},
    progress::Progress,
};
use libtest_mimic::{Arguments, Failed, Trial};

const PODS: usize = 1_000;
const CHANGES: usize = 100;

fn main() {
    let trial = Trial::test("no_packet_leaves_with_a_wrong_address", no_wrong_packet);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

fn no_wrong_packet() -> Result<(), Failed> {
    let programs = Path::new(env!("CARGO_BIN_EXE_lab")).parent();
    let programs = programs.ok_or("the lab's program has no folder")?;
    let settings = Settings {
        pods: PODS,
        changes: CHANGES,
        seed: seed(),
        until_wrong: false,
        favour: None,
        values: Vec::new(),
        without: Vec::new(),
    };
    let report = hunt::run(programs, &settings, &Progress::new(false))?;
    println!("{report}{}", report.json());
    report.failure().map_or(Ok(()), |failure| Err(failure.into()))
}

fn seed() -> u64 {
    let given = env::var("HUNT_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(since.subsec_nanos())
    })
}
