//! `egressnat-cni`, the chained CNI plugin of the start gate: see `egressnat_agent::cni`.
//!
//! Parameters in the environment, the network configuration on standard input, the result or the error on
//! standard output, as the CNI specification says. What an administrator should know goes to standard error, and
//! to the kernel's log, since runtimes keep a plugin's standard error only when it fails.

use std::io::{Read, Write};
use std::process::ExitCode;

use egressnat_agent::cni::PLUGIN;
use egressnat_agent::cni::plugin::{Outcome, serve};
use egressnat_agent::cni::spec::{CniError, Command, VERSIONS};
use serde_json::Value;

/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut input = String::new();
    let outcome = Command::parse(|name| std::env::var(name).ok()).and_then(|command| {
        if command != Command::Version {
            std::io::stdin()
                .take(LONGEST)
                .read_to_string(&mut input)
                .map_err(|error| CniError::Configuration(serde_json::Error::io(error)))?;
        }
        serve(&command, &input)
    });
    match outcome {
        Ok(Outcome { result, warning }) => {
            if let Some(warning) = warning {
                warn(&warning);
            }
            print(result.as_ref())
        }
        Err(error) => {
            warn(&error.to_string());
            print(Some(&error.result(version(&input))));
            ExitCode::FAILURE
        }
    }
}

/// The version of the configuration, in which errors are told as well.
fn version(input: &str) -> &'static str {
    let asked: Value = serde_json::from_str(input).unwrap_or_default();
    let known = VERSIONS.iter().find(|v| asked["cniVersion"] == **v);
    known.unwrap_or(&VERSIONS[VERSIONS.len() - 1])
}

fn print(result: Option<&Value>) -> ExitCode {
    let written = match result {
        Some(result) => writeln!(std::io::stdout(), "{result}"),
        None => Ok(()),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Nobody is left to be told that a warning was lost.
fn warn(text: &str) {
    let line = format!("{PLUGIN}: {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    let kernel_log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    let _ = kernel_log.and_then(|mut log| log.write_all(line.as_bytes()));
}
