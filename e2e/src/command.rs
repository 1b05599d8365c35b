//! Running helper programs (`ip`, `nft`, `kubectl`, ...) to their end.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::error::{Context, Error, Result};

/// The command line as a person would type it, for messages.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started, or ends with a status other than zero; the error then holds its output.
pub fn output(command: &mut Command) -> Result<String> {
    run(command, None)
}

/// Like [`output`], with `input` on standard input.
///
/// # Errors
/// As [`output`].
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    run(command, Some(input))
}

fn run(command: &mut Command, input: Option<&str>) -> Result<String> {
    let start = || format!("run `{}`", line(command));
    let action = start();
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| action.clone())?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // A program that fails early closes its end; its exit status tells more than this error would.
        let _ = pipe.write_all(input.as_bytes());
    }
    let result = child.wait_with_output().context(|| action)?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if result.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&result.stderr).trim().to_owned();
    let output = if stderr.is_empty() {
        stdout.trim().to_owned()
    } else {
        stderr
    };
    Err(Error::Command {
        command: line(command),
        status: result.status,
        output,
    })
}
