//! Container images, made without a builder: a program, the libraries that it is linked with, and nothing
//! else, written straight into an OCI archive.

mod libraries;
mod oci;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    command,
    error::{Context, Result},
    site::Site,
};
pub use oci::Image;

/// The lab's toolbox: busybox and iperf3. It is the nodes' pause image as well.
pub const TOOLBOX: &str = "docker.io/egressnat-lab/toolbox:1";
/// What the leak hunt's pods run.
pub const SENDER: &str = "docker.io/egressnat-lab/sender:1";
/// flannel and its CNI plugin, beside the toolbox.
pub const FLANNEL: &str = "docker.io/egressnat-lab/flannel:1";
/// The lab's CoreDNS.
pub const COREDNS: &str = "docker.io/egressnat-lab/coredns:1";

const BUSYBOX: &str = "/bin/busybox";
/// The operator needs no right on its node; any user other than root will do.
const OPERATOR_USER: &str = "65532:65532";

/// Builds the images of the lab itself into a folder; returns their archives.
///
/// # Errors
/// When a program is not there or an archive cannot be written.
pub fn build_lab(folder: &Path) -> Result<Vec<PathBuf>> {
    let archives = ["toolbox.tar", "coredns.tar"].map(|name| folder.join(name));
    toolbox(TOOLBOX)?.write(&archives[0])?;
    coredns()?.write(&archives[1])?;
    Ok(archives.into())
}

/// Builds the image of flannel into a folder; returns its archive.
///
/// # Errors
/// When a program is not built or the archive cannot be written.
pub fn build_flannel(folder: &Path) -> Result<PathBuf> {
    let mut image = toolbox(FLANNEL)?;
    image.add_program(&Site::program("flanneld"), "/flanneld")?;
    image.add_program(&Site::program("flannel"), "/flannel")?;
    let archive = folder.join("flannel.tar");
    image.write(&archive)?;
    Ok(archive)
}

/// Builds the image of the leak hunt's pods into a folder; returns its archive.
///
/// # Errors
/// When the program is not built or the archive cannot be written.
pub fn build_sender(program: &Path, folder: &Path) -> Result<PathBuf> {
    let mut image = Image::new(SENDER);
    image.add_program(program, "/sender")?;
    image.entrypoint = vec!["/sender".into()];
    let archive = folder.join("sender.tar");
    image.write(&archive)?;
    Ok(archive)
}

/// Builds the images of the project from the release programs: the archives
/// `target/images/egressnat-{operator,agent}-VERSION.tar`, and beside them `values.yaml`, chart values that
/// name what was built, so that a new image under the old tag restarts the pods. Returns the archives.
///
/// # Errors
/// When a program is not built or a file cannot be written.
pub fn build_project() -> Result<Vec<PathBuf>> {
    let mut operator = program_image("egressnat-operator")?;
    operator.user = OPERATOR_USER.into();
    let mut agent = program_image("egressnat-agent")?;
    agent.add_program(&Site::target().join("plugin/egressnat-cni"), "/egressnat-cni")?;
    let archives = [&operator, &agent].map(|image| project_archive(&image.reference));
    let built = |digest| json!({"podAnnotations": {"egressnat.io/image-digest": digest}});
    let values = json!({
        "operator": built(operator.write(&archives[0])?),
        "agent": built(agent.write(&archives[1])?),
    });
    let file = images_folder().join("values.yaml");
    fs::write(&file, format!("{values:#}\n")).context(|| format!("write {}", file.display()))?;
    Ok(archives.into())
}

/// docker.io/egressnat/egressnat-agent:0.1.0 -> target/images/egressnat-agent-0.1.0.tar
fn project_archive(reference: &str) -> PathBuf {
    let name = reference
        .rsplit('/')
        .next()
        .unwrap_or(reference)
        .replace(':', "-");
    images_folder().join(format!("{name}.tar"))
}

fn images_folder() -> PathBuf {
    Site::target().join("images")
}

fn program_image(name: &str) -> Result<Image> {
    let built = Site::target().join("release").join(name);
    let program = format!("/{name}");
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

fn toolbox(reference: &str) -> Result<Image> {
    let mut image = Image::new(reference);
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
