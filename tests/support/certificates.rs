//! Certificate authorities of a test, and what they sign.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its private key, as PEM.
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

/// Files that are replaced as a whole, as those of a Kubernetes secret are.
pub struct Files(TempDir);

// === impl Authority ===

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for this host.
    pub fn sign(&self) -> Signed {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, "a host"); // one that is its issuer's is of a root, for OpenSSL
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

// === impl Files ===

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes or replaces one; where it is.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let (new, path) = (self.path("new"), self.path(name));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &path).expect("renamed");
        path
    }

    /// Certificate and key, by the names `<name>.crt` and `<name>.key`.
    pub fn put_signed(&self, name: &str, signed: &Signed) -> (PathBuf, PathBuf) {
        let certificate = self.put(&format!("{name}.crt"), &signed.certificate);
        (certificate, self.put(&format!("{name}.key"), &signed.key))
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }
}
