//! One party's keys: a directory with
//! ```text
//!  ca.crt      the authority's certificate: whom we believe
//!  own.crt     our certificate: who we are
//!  own.key     its private key              (mode 600)
//!  quorum.key  what members share           (mode 600, nodes only)
//! ```

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use webpki::EndEntityCert;

use crate::der::{Validity, validity};
use crate::error::KeysError;
use crate::files;
use crate::quorum::QuorumKey;
use crate::subject::{Role, SCHEME, Subject};

pub(crate) const CA_CERT: &str = "ca.crt";
pub(crate) const OWN_CERT: &str = "own.crt";
pub(crate) const OWN_KEY: &str = "own.key";
pub(crate) const QUORUM_KEY: &str = "quorum.key";

/// What we speak within TLS; nothing else is answered on our sockets.
pub const ALPN: &[u8] = b"vellum";

/// A bundle, read and found consistent. Files that are replaced (a renewed certificate) are read at the next handshake,
/// so that a gateway lives longer than its certificate; files that don't fit together are left alone until they do.
pub struct Keys {
    dir: PathBuf,
    subject: Subject,
    quorum: Option<Arc<QuorumKey>>,
    current: Mutex<Current>,
}

/// What a renewal replaces.
struct Current {
    /// When `own.crt` was written.
    written: Option<(SystemTime, u64)>,
    subject: Subject,
    validity: Validity,
    client: Arc<ClientConfig>,
    server: Option<Arc<ServerConfig>>,
}

impl Current {
    fn load(dir: &Path) -> Result<Current, KeysError> {
        let at = |name: &str| dir.join(name);
        let written = written(dir);
        let certificate = read_certificate(&at(OWN_CERT))?;
        let subject = subject_of(&certificate)?;
        let validity = validity(&certificate).ok_or_else(|| KeysError::malformed(&at(OWN_CERT), "no dates"))?;
        let key = || {
            let text = files::read_secret(&at(OWN_KEY))?;
            PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeysError::no_key(&at(OWN_KEY)))
        };
        let mut roots = RootCertStore::empty();
        roots.add(read_certificate(&at(CA_CERT))?).map_err(|e| KeysError::malformed(&at(CA_CERT), e))?;
        let roots = Arc::new(roots);

        let mut client = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(vec![certificate.clone()], key()?)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        let server = match subject.role {
            Role::Client => None,
            Role::Node => Some(Arc::new(server_config(roots, certificate, key()?)?)),
        };
        Ok(Current { written, subject, validity, client: Arc::new(client), server })
    }
}

/// What tells one certificate's file from the next: clocks of filesystems tick slower than files are replaced.
fn written(dir: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(dir.join(OWN_CERT)).ok()?;
    Some((meta.modified().ok()?, meta.ino()))
}

impl Keys {
    pub fn load(dir: &Path) -> Result<Keys, KeysError> {
        let current = Current::load(dir)?;
        let quorum = match current.subject.role {
            Role::Node => Some(Arc::new(QuorumKey::load(&dir.join(QUORUM_KEY))?)),
            Role::Client => None,
        };
        Ok(Keys { dir: dir.to_owned(), subject: current.subject.clone(), quorum, current: Mutex::new(current) })
    }

    /// The newest keys of the same role and name that the directory has had.
    fn current(&self) -> MutexGuard<'_, Current> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let written = written(&self.dir);
        if written.is_some() && written != current.written {
            match Current::load(&self.dir) {
                Ok(new) if (new.subject.role, &new.subject.name) == (self.subject.role, &self.subject.name) => {
                    tracing::info!(subject = %new.subject, "new keys");
                    *current = new;
                }
                Ok(new) => {
                    tracing::warn!(found = %new.subject, ours = %self.subject, "somebody else's keys: left alone")
                }
                Err(error) => tracing::warn!(%error, "new keys can't be used yet"),
            }
        }
        current
    }

    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    pub fn validity(&self) -> Validity {
        self.current().validity
    }

    /// For a socket that we open.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.current().client.clone()
    }

    /// For a socket that we accept; an error for keys of a client.
    pub fn server(&self) -> Result<Arc<ServerConfig>, KeysError> {
        self.current().server.clone().ok_or_else(|| self.not_a_node())
    }

    /// What the members of the quorum share; an error for keys of a client.
    pub fn quorum(&self) -> Result<Arc<QuorumKey>, KeysError> {
        self.quorum.clone().ok_or_else(|| self.not_a_node())
    }

    fn not_a_node(&self) -> KeysError {
        KeysError::NotANode { path: self.dir.clone(), found: self.subject.role.as_str().to_owned() }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.subject)
    }
}

fn server_config(
    roots: Arc<RootCertStore>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, KeysError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto())
        .build()
        .map_err(|e| KeysError::Tls(rustls::Error::General(e.to_string())))?;
    let mut server = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // Sockets live long; a ticket would outlive the certificate that earned it.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(server)
}

/// The fastest suite of TLS 1.3 first; all of them are strong enough.
fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
    crypto.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(crypto)
}

pub(crate) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeysError> {
    CertificateDer::from_pem_slice(files::read(path)?.as_bytes()).map_err(|e| KeysError::malformed(path, e))
}

/// Whom a certificate that was verified is for.
pub fn peer_subject(certificates: Option<&[CertificateDer<'_>]>) -> Result<Subject, KeysError> {
    let none = || KeysError::Subject { what: "no certificate".into() };
    subject_of(certificates.and_then(<[_]>::first).ok_or_else(none)?)
}

/// Whom a DER certificate says it is for; it may be anybody's.
pub fn certificate_subject(der: &[u8]) -> Result<Subject, KeysError> {
    subject_of(&CertificateDer::from(der))
}

pub(crate) fn subject_of(certificate: &CertificateDer<'_>) -> Result<Subject, KeysError> {
    let refused = |what: &str| KeysError::Subject { what: what.to_owned() };
    let certificate = EndEntityCert::try_from(certificate).map_err(|e| refused(&e.to_string()))?;
    let mut ours = certificate.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
    match (ours.next(), ours.next()) {
        (Some(uri), None) => uri.parse(),
        (None, _) => Err(refused("no URI of ours")),
        (Some(_), Some(_)) => Err(refused("more than one URI of ours")),
    }
}
