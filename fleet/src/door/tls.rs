//! The certificate that clients are shown, read anew when its files change.
//!
//! ```text
//! the one of the start --files change, and are a pair--> the next one
//!                      --files change, and are none----> the same as before, and a warning
//! ```
//!
//! A connection keeps the certificate that it began with. A pair that does not match, for example one of which only one
//! half is written yet, is refused and looked at again when the files change further.
//!
//! Limits: `FILE_BYTES_MAX` for each file; they are looked at every `LOOK_EVERY`.

use base::{Error, Result};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of a chain or a key.
const FILE_BYTES_MAX: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The pair of files, and what is served of them.
pub struct Certificates {
    chain: PathBuf,
    key: PathBuf,
    config: Mutex<Arc<ServerConfig>>,
    /// What was in the files when they were looked at last; none while they cannot be read.
    seen: Mutex<Option<Pair>>,
}

/// The bytes of both files.
#[derive(Clone, PartialEq)]
struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Certificates {
    /// Reads a PEM chain, the server's own certificate first, and its PEM key.
    ///
    /// Errors: `Invalid` with what is wrong with the files.
    pub fn open(chain: &Path, key: &Path) -> Result<Certificates> {
        let pair = Pair::read(chain, key)?;
        let (config, seen) = (Mutex::new(pair.config(chain, key)?), Mutex::new(Some(pair)));
        Ok(Certificates { chain: chain.into(), key: key.into(), config, seen })
    }

    /// What the next connection is to be served by.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.lock().expect("no holder panics").clone()
    }

    /// Follows the files, from what they were when they were opened, until it is dropped.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    /// Takes the pair in the files when it is another one than was seen last.
    fn look(&self) {
        let mut seen = self.seen.lock().expect("no holder panics");
        let read = Pair::read(&self.chain, &self.key);
        let now = read.as_ref().ok().cloned();
        if now == *seen {
            return;
        }
        *seen = now;
        match read.and_then(|pair| pair.config(&self.chain, &self.key)) {
            Ok(config) => {
                *self.config.lock().expect("no holder panics") = config;
                tracing::info!("new connections see the certificate that {} has now", self.chain.display());
            }
            Err(error) => tracing::warn!("the certificate of before is kept: {}", error.chain()),
        }
    }
}

impl Pair {
    fn read(chain: &Path, key: &Path) -> Result<Pair> {
        Ok(Pair { chain: read(chain)?, key: read(key)? })
    }

    fn config(&self, chain: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
        let (chain, key) = (chain.display(), key.display());
        let none = |e| Error::invalid(format!("{chain} is not a chain of PEM certificates")).because(e);
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&self.chain).collect::<Result<_, _>>().map_err(none)?;
        if certificates.is_empty() {
            return Err(Error::invalid(format!("{chain} has no PEM certificate")));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key);
        let private = private.map_err(|e| Error::invalid(format!("{key} has no PEM key")).because(e))?;
        let wrong =
            |e| Error::invalid(format!("{chain} and {key} are not a certificate and its key")).because(e);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_no_client_auth()
            .with_single_cert(certificates, private)
            .map_err(wrong)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Errors: `Invalid` when the file has no PEM certificate.
pub fn check_authority(path: &Path) -> Result<()> {
    let bytes = read(path)?;
    let mut all = CertificateDer::pem_slice_iter(&bytes);
    match all.next().is_some_and(|first| first.is_ok()) && all.all(|one| one.is_ok()) {
        true => Ok(()),
        false => Err(Error::invalid(format!("{} has no PEM certificate of an authority", path.display()))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let cannot = |e| Error::invalid(format!("{shown} cannot be read")).because(e);
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(Error::invalid(format!("{shown} is larger than {FILE_BYTES_MAX} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        (pem("CERTIFICATE", made.cert.der()), pem("PRIVATE KEY", &made.signing_key.serialize_der()))
    }

    /// rcgen's own needs one crate more.
    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn a_pair_is_taken_when_it_is_one_and_the_old_one_stays_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
        let ((chain_a, key_a), (chain_b, key_b)) = (pair(), pair());
        write(&chain, &chain_a).unwrap();
        write(&key, &key_a).unwrap();
        let served = Certificates::open(&chain, &key).unwrap();
        let mut config = served.config();
        let mut changed = |because: &str, change: bool| {
            served.look();
            let now = served.config();
            assert_eq!(!Arc::ptr_eq(&config, &now), change, "{because}");
            config = now;
        };
        write(&chain, &chain_b).unwrap();
        write(&key, &key_b).unwrap();
        changed("renewed before anybody looked", true);
        changed("nothing happened", false);
        write(&chain, &chain_a).unwrap();
        changed("a certificate without its key", false);
        changed("the same", false);
        write(&key, &key_a).unwrap();
        changed("the whole pair", true);
        write(&chain, &chain_b[..chain_b.len() / 2]).unwrap();
        changed("half a file", false);
        std::fs::remove_file(&chain).unwrap();
        changed("no file", false);
        write(&chain, &chain_a).unwrap();
        changed("the pair is there again", true);
    }

    #[test]
    fn what_is_wrong_with_files_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
        let ((chain_a, key_a), (_, key_b)) = (pair(), pair());
        let check = |chain_text: &str, key_text: &str, expect: &str| {
            write(&chain, chain_text).unwrap();
            write(&key, key_text).unwrap();
            let error = Certificates::open(&chain, &key).err().unwrap();
            assert!(error.message().contains(expect), "{error}");
        };
        check("", &key_a, "has no PEM certificate");
        check(&chain_a, "none", "has no PEM key");
        check(&chain_a, &key_b, "are not a certificate and its key");
        check(&"x".repeat(FILE_BYTES_MAX as usize + 1), &key_a, "is larger than");
        assert!(check_authority(&key).err().unwrap().message().contains("has no PEM certificate"));
        write(&chain, &chain_a).unwrap();
        check_authority(&chain).unwrap();
    }
}
