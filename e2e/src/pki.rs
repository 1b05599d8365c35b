//! Certificates and tokens: one authority per cluster, made anew with each `up`.

use std::{fs, io::Read, os::unix::fs::OpenOptionsExt, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::{
    error::{Context, Result},
    site::{API_PORT, API_SERVICE, CONTROL_PLANE, NODES, Site},
};

/// Who may talk to the API server: name of the kubeconfig, user, group.
fn users() -> Vec<(String, String, &'static str)> {
    let fixed = [
        ("admin", "admin", "system:masters"),
        (
            "kube-controller-manager",
            "system:kube-controller-manager",
            "system:lab",
        ),
        ("kube-scheduler", "system:kube-scheduler", "system:lab"),
        ("kube-proxy", "system:kube-proxy", "system:lab"),
    ];
    let nodes = NODES.iter().map(|node| {
        (
            node.name.to_owned(),
            format!("system:node:{}", node.name),
            "system:nodes",
        )
    });
    fixed
        .map(|(name, user, group)| (name.to_owned(), user.to_owned(), group))
        .into_iter()
        .chain(nodes)
        .collect()
}

/// Makes all keys, certificates, tokens and the kubeconfigs for use inside the cluster's network.
///
/// # Errors
/// When one cannot be made or written.
pub fn create(site: &Site) -> Result<()> {
    let authority = authority()?;
    write_secret(path(site, "ca.crt"), &authority.pem())?;
    issue(site, &authority, "apiserver", server_params()?)?;
    issue(site, &authority, "apiserver-kubelet-client", client_params()?)?;
    let service_accounts = KeyPair::generate()?;
    write_secret(path(site, "sa.key"), &service_accounts.serialize_pem())?;
    write_secret(path(site, "sa.pub"), &service_accounts.public_key_pem())?;

    let mut tokens = String::new();
    let server = format!("https://{}:{API_PORT}", CONTROL_PLANE.v4);
    for (name, user, group) in users() {
        let token = random_token()?;
        tokens.push_str(&format!("{token},{user},{user},{group}\n"));
        write_kubeconfig(site, &kubeconfig_path(site, &name), &server, &token)?;
        write_secret(path(site, &format!("{name}.token")), &token)?;
    }
    write_secret(path(site, "tokens.csv"), &tokens)
}

/// A file of the cluster's PKI folder.
#[must_use]
pub fn path(site: &Site, name: &str) -> PathBuf {
    site.path("pki").join(name)
}

/// The kubeconfig of a user (`admin`, a node, a control-plane program), for use on the node network.
#[must_use]
pub fn kubeconfig_path(site: &Site, user: &str) -> PathBuf {
    path(site, &format!("{user}.kubeconfig"))
}

/// Writes the administrator's kubeconfig for use on the machine itself, by the proxy on `port`.
///
/// # Errors
/// When the token cannot be read or the file not be written.
pub fn write_host_kubeconfig(site: &Site, port: u16) -> Result<()> {
    let token = path(site, "admin.token");
    let token = fs::read_to_string(&token).context(|| format!("read {}", token.display()))?;
    write_kubeconfig(
        site,
        &site.path("kubeconfig"),
        &format!("https://127.0.0.1:{port}"),
        &token,
    )
}

fn write_kubeconfig(site: &Site, file: &std::path::Path, server: &str, token: &str) -> Result<()> {
    let name = site.cluster();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority": path(site, "ca.crt")}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    });
    write_secret(file.to_owned(), &format!("{config:#}\n"))
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "egressnat lab");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn server_params() -> Result<CertificateParams> {
    let names = [
        "localhost",
        "127.0.0.1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        API_SERVICE.0,
        API_SERVICE.1,
    ];
    let node = [CONTROL_PLANE.v4.to_string(), CONTROL_PLANE.v6.to_string()];
    let mut params = CertificateParams::new(
        names
            .into_iter()
            .map(str::to_owned)
            .chain(node)
            .collect::<Vec<_>>(),
    )?;
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver-kubelet-client");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn issue(
    site: &Site,
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    params: CertificateParams,
) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    write_secret(path(site, &format!("{name}.crt")), &certificate.pem())?;
    write_secret(path(site, &format!("{name}.key")), &key.serialize_pem())
}

fn random_token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context(|| "read /dev/urandom".into())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_secret(path: PathBuf, content: &str) -> Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .context(|| format!("write {}", path.display()))
}
