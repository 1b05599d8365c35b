//! Shapes of plans and statuses: every folder of `testdata/plan` holds a world, as the objects that the API
//! server would show, and what follows from it. `BLESS=1 cargo test -p egressnat-operator golden`
//! writes the latter anew; read the difference before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use egressnat_crds::{EgressNATPolicyStatus, EgressPlanSpec};

use super::plan;
use crate::backlog::Backlog;
use crate::{status, testing};

#[test]
fn plans_and_statuses_are_those_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plan");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let bless = std::env::var_os("BLESS").is_some();
    let mut different = String::new();
    for case in cases {
        let world = testing::world(&fs::read_to_string(case.join("world.yaml")).unwrap());
        let backlog = Backlog::new(&world);
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let plans: BTreeMap<String, EgressPlanSpec> = plan(&world).plans;
        let statuses: BTreeMap<String, EgressNATPolicyStatus> =
            status::due(backlog.policies(), &world, &backlog, now);
        for (file, made) in [
            ("plans.yaml", serde_yaml_ng::to_string(&plans).unwrap()),
            ("status.yaml", serde_yaml_ng::to_string(&statuses).unwrap()),
        ] {
            let path = case.join(file);
            if bless {
                fs::write(&path, &made).unwrap();
            }
            let written = fs::read_to_string(&path).unwrap_or_default();
            if written != made {
                writeln!(different, "{}\n--- is now\n{made}", path.display()).unwrap();
            }
        }
    }
    assert!(different.is_empty(), "{different}\nBLESS=1 writes them anew");
}
