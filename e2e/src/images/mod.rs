//! Container images, made without a builder: a program, the libraries that it is linked with, and nothing
//! else, written straight into an OCI archive.

mod libraries;
mod oci;

use std::path::{Path, PathBuf};

use crate::{command, error::Result, site::Site};
pub use oci::Image;

/// The lab's toolbox: busybox and iperf3. It is the nodes' pause image as well.
pub const TOOLBOX: &str = "docker.io/egressnat-lab/toolbox:1";
/// The lab's CoreDNS.
pub const COREDNS: &str = "docker.io/egressnat-lab/coredns:1";

const BUSYBOX: &str = "/bin/busybox";
/// The operator needs no right on its node; any user other than root will do.
const OPERATOR_USER: &str = "65532:65532";

/// Builds the images of the lab itself; returns their archives.
///
/// # Errors
/// When a program is not there or an archive cannot be written.
pub fn build_lab() -> Result<Vec<PathBuf>> {
    let folder = Site::shared().join("images");
    let archives = [
        (toolbox()?, folder.join("toolbox.tar")),
        (coredns()?, folder.join("coredns.tar")),
    ];
    write_all(archives)
}

/// Builds the images of the project from the release programs; returns their archives,
/// `target/images/egressnat-{operator,agent}-VERSION.tar`.
///
/// # Errors
/// When a program is not built or an archive cannot be written.
pub fn build_project() -> Result<Vec<PathBuf>> {
    let mut operator = program_image("egressnat-operator")?;
    operator.user = OPERATOR_USER.into();
    let agent = program_image("egressnat-agent")?;
    write_all([operator, agent].map(|image| {
        let archive = project_archive(&image.reference);
        (image, archive)
    }))
}

fn write_all<const N: usize>(images: [(Image, PathBuf); N]) -> Result<Vec<PathBuf>> {
    images
        .into_iter()
        .map(|(image, archive)| {
            image.write(&archive)?;
            Ok(archive)
        })
        .collect()
}

/// docker.io/egressnat/egressnat-agent:0.1.0 -> target/images/egressnat-agent-0.1.0.tar
fn project_archive(reference: &str) -> PathBuf {
    let name = reference
        .rsplit('/')
        .next()
        .unwrap_or(reference)
        .replace(':', "-");
    Site::root().join("target/images").join(format!("{name}.tar"))
}

fn program_image(name: &str) -> Result<Image> {
    let built = Site::root().join("target/release").join(name);
    let program = format!("/usr/bin/{name}");
    let mut image = Image::new(&format!(
        "docker.io/egressnat/{name}:{}",
        env!("CARGO_PKG_VERSION")
    ));
    image.add_program(&built, &program)?;
    image.entrypoint = vec![program];
    Ok(image)
}

fn coredns() -> Result<Image> {
    let mut image = Image::new(COREDNS);
    image.add_program(&Site::program("coredns"), "/coredns")?;
    image.entrypoint = vec!["/coredns".into()];
    Ok(image)
}

fn toolbox() -> Result<Image> {
    let mut image = Image::new(TOOLBOX);
    image.add_program(Path::new("/usr/bin/busybox"), BUSYBOX)?;
    image.add_program(Path::new("/usr/bin/iperf3"), "/usr/bin/iperf3")?;
    let applets = command::output(std::process::Command::new("/usr/bin/busybox").arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        image.add_link(&format!("/bin/{applet}"), BUSYBOX);
    }
    image.add_text("/etc/nsswitch.conf", "hosts: files dns\n");
    // Of a name with both families the IPv4 address is tried first, as most clients in pods do.
    image.add_text("/etc/gai.conf", "precedence ::ffff:0:0/96 100\n");
    image.add_text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n");
    image.add_text("/etc/group", "root:x:0:\n");
    image.entrypoint = vec![BUSYBOX.into(), "sleep".into(), "infinity".into()];
    Ok(image)
}
