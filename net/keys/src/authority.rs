//! The authority of one installation: a directory with
//! ```text
//!  ca.crt  ca.key  quorum.key
//!  nodes/NAME/      a bundle for a node       (see `Keys`)
//!  clients/NAME/    a bundle for a client
//! ```
//! A bundle is copied to its machine; the authority itself belongs on none of them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::bundle::{CA_CERT, OWN_CERT, OWN_KEY, QUORUM_KEY, read_certificate, subject_of};
use crate::der::{Validity, validity};
use crate::error::KeysError;
use crate::files::{self, NewDir};
use crate::quorum::QuorumKey;
use crate::subject::{Name, Role, Subject};

const CA_KEY: &str = "ca.key";
/// Of every authority: which one it is says its key.
const CA_NAME: &str = "Vellum authority";
const CA_VALID: Duration = Duration::from_secs(20 * 366 * 86_400);
/// Clocks of an installation may differ by so much before a new certificate is refused as one of the future.
const CLOCKS: Duration = Duration::from_secs(86_400);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    pub subject: Subject,
    /// IP addresses or DNS names that clients reach a node at.
    pub addresses: Vec<String>,
    pub valid: Duration,
    /// In the place of a bundle of this name.
    pub renew: bool,
}

/// A bundle as `list` shows it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub path: PathBuf,
    pub subject: Subject,
    pub validity: Validity,
}

pub struct Authority {
    dir: PathBuf,
}

fn folder(role: Role) -> &'static str {
    match role {
        Role::Node => "nodes",
        Role::Client => "clients",
    }
}

fn issue(error: rcgen::Error) -> KeysError {
    KeysError::Issue(error.to_string())
}

impl Authority {
    /// Makes a new one. An existing one is never overwritten: nothing that it issued would be believed any more.
    pub fn init(dir: &Path) -> Result<Authority, KeysError> {
        let draft = NewDir::begin(dir)?;
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = ca_params(OffsetDateTime::now_utc()).self_signed(&key).map_err(issue)?;
        files::create_secret(&draft.path().join(CA_KEY), &key.serialize_pem())?;
        files::create_secret(&draft.path().join(QUORUM_KEY), &QuorumKey::generate()?)?;
        files::create_public(&draft.path().join(CA_CERT), &certificate.pem())?;
        for role in [Role::Node, Role::Client] {
            files::make_private(&draft.path().join(folder(role)))?;
        }
        draft.finish(false)?;
        Ok(Authority { dir: dir.to_owned() })
    }

    pub fn open(dir: &Path) -> Result<Authority, KeysError> {
        read_certificate(&dir.join(CA_CERT))?;
        Ok(Authority { dir: dir.to_owned() })
    }

    /// Makes a bundle; the directory that holds it.
    pub fn issue(&self, wish: &Wish) -> Result<PathBuf, KeysError> {
        let to = self.dir.join(folder(wish.subject.role)).join(wish.subject.name.as_str());
        if to.exists() && !wish.renew {
            return Err(KeysError::Exists { path: to });
        }
        let ca_path = self.dir.join(CA_KEY);
        let ca_key = KeyPair::from_pem(&files::read_secret(&ca_path)?).map_err(|_| KeysError::no_key(&ca_path))?;
        let now = OffsetDateTime::now_utc();
        let issuer = Issuer::new(ca_params(now), ca_key);
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = params(wish, now)?.signed_by(&key, &issuer).map_err(issue)?;

        let draft = NewDir::begin(&to)?;
        let at = |name: &str| draft.path().join(name);
        files::create_public(&at(CA_CERT), &files::read(&self.dir.join(CA_CERT))?)?;
        files::create_public(&at(OWN_CERT), &certificate.pem())?;
        files::create_secret(&at(OWN_KEY), &key.serialize_pem())?;
        if wish.subject.role == Role::Node {
            files::create_secret(&at(QUORUM_KEY), &files::read_secret(&self.dir.join(QUORUM_KEY))?)?;
        }
        draft.finish(wish.renew)?;
        Ok(to)
    }

    /// Every bundle, by role and name.
    pub fn list(&self) -> Result<Vec<Issued>, KeysError> {
        let mut all = Vec::new();
        for role in [Role::Node, Role::Client] {
            let dir = self.dir.join(folder(role));
            for entry in std::fs::read_dir(&dir).map_err(KeysError::io(&dir))? {
                let entry = entry.map_err(KeysError::io(&dir))?;
                // The draft of somebody who was interrupted is no bundle.
                if entry.file_name().to_str().is_some_and(|name| name.parse::<Name>().is_ok()) {
                    all.push(issued(entry.path())?);
                }
            }
        }
        all.sort_by(|a, b| (a.subject.role, &a.subject.name).cmp(&(b.subject.role, &b.subject.name)));
        Ok(all)
    }
}

fn issued(path: PathBuf) -> Result<Issued, KeysError> {
    let file = path.join(OWN_CERT);
    let certificate = read_certificate(&file)?;
    let validity = validity(&certificate).ok_or_else(|| KeysError::malformed(&file, "no dates"))?;
    Ok(Issued { subject: subject_of(&certificate)?, validity, path })
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn ca_params(now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = now - CLOCKS;
    params.not_after = now + CA_VALID;
    params
}

fn params(wish: &Wish, now: OffsetDateTime) -> Result<CertificateParams, KeysError> {
    let text = |text: &str| Ia5String::try_from(text).map_err(issue);
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("{} {}", wish.subject.role.as_str(), wish.subject.name));
    params.subject_alt_names = vec![SanType::URI(text(&wish.subject.to_string())?)];
    for address in &wish.addresses {
        let san = match address.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) if rustls::pki_types::DnsName::try_from(address.as_str()).is_ok() => {
                SanType::DnsName(text(address)?)
            }
            Err(_) => return Err(KeysError::Address { text: address.clone() }),
        };
        params.subject_alt_names.push(san);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A client's certificate serves nobody: it can't be taken for a node's.
    params.extended_key_usages = match wish.subject.role {
        Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCKS;
    params.not_after = now + wish.valid;
    Ok(params)
}
