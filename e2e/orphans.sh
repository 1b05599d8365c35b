#!/usr/bin/env bash
# Fails when a Rust source file is part of no crate: nobody would notice that it does not even compile.
# Reads the dependency files that the last build of all targets left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

reached=$(cat target/debug/deps/*.d | tr ' \\' '\n\n' | sed -n 's/^\(.*\.rs\):\?$/\1/p' | sed "s#^$PWD/##" | sort -u)
orphans=$(git ls-files --cached --others --exclude-standard '*.rs' | sort -u | comm -23 - <(echo "$reached"))
if [ -n "$orphans" ]; then
  echo "no crate reaches these files: add a mod line, or delete them:" >&2
  echo "$orphans" >&2
  exit 1
fi
