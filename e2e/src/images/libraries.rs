//! The shared libraries of a program, as its own loader resolves them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command,
    error::{Error, Result},
};

/// Absolute paths of the libraries and of the loader; none for a static program.
///
/// # Errors
/// When a library is missing on this machine.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    match command::output(Command::new("ldd").arg(program)) {
        Ok(listing) => parse(program, &listing),
        Err(Error::Command { output, .. }) if output.contains("not a dynamic executable") => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}

/// Lines of ldd: "name => /path (0x1)", "/loader (0x1)", "linux-vdso.so.1 (0x1)", "statically linked".
fn parse(program: &Path, listing: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in listing.lines().map(str::trim) {
        if line.ends_with("not found") {
            return Err(Error::State(format!(
                "{} needs a library that is missing: {line}",
                program.display()
            )));
        }
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        let path = target.split(' ').next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_libraries_and_loader_but_not_the_kernels_own() {
        let listing =
            "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        let libraries = parse(Path::new("/bin/x"), listing).unwrap();
        assert_eq!(
            libraries,
            [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]
        );
    }

    #[test]
    fn a_missing_library_is_an_error() {
        let error = parse(Path::new("/bin/x"), "\tlibx.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so"), "{error}");
    }
}
