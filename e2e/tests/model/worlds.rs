//! The worlds of `testdata/worlds`: those on which something was wrong once, and some written by hand, which say
//! themselves what is right.

use std::fs;
use std::path::{Path, PathBuf};

use crate::expected::{expected, say};
use crate::properties::{Tally, by_plans, by_rules};
use crate::world::World;

#[test]
fn the_worlds_that_were_kept_are_as_they_should_be() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/worlds");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut written = 0;
    for file in files {
        let world = World::of_yaml(&fs::read_to_string(&file).unwrap());
        for verdict in &world.verdicts {
            let pod = world.pods.iter().find(|p| p.key() == verdict.pod).unwrap();
            let says = say(&expected(&world, pod, verdict.to));
            assert_eq!(
                says,
                verdict.is,
                "{}: {} to {}",
                file.display(),
                verdict.pod,
                verdict.to
            );
            written += 1;
        }
        let mut tally = Tally::new();
        let agree = by_plans(&world, &mut tally).and_then(|()| by_rules(&world, &mut tally));
        agree.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    assert!(written > 0, "no world says what is right");
}
