//! `egressnat-agent`.

fn main() {}
