//! The cell's key, and the cipher that seals secret fields before they reach the log.
//!
//! AES-256-GCM-SIV with a fixed nonce: deterministic, so that equal records have equal images; its synthetic IV keeps
//! that safe (only equality of equal secrets shows).

use aes_gcm_siv::aead::{Aead, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use base::secret::Cipher;
use base::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

pub struct CellKey(Aes256GcmSiv);

impl CellKey {
    pub fn cipher(key: [u8; 32]) -> Arc<dyn Cipher> {
        Arc::new(CellKey(Aes256GcmSiv::new(&key.into())))
    }

    /// Reads the key file, or makes it (mode 0600) when there is none.
    pub fn open(path: &Path) -> Result<Arc<dyn Cipher>> {
        let mut key = [0; 32];
        match std::fs::File::open(path) {
            Ok(mut file) => file.read_exact(&mut key).map_err(|e| {
                Error::internal(format!(
                    "the key file {} is too short; restore it from a backup",
                    path.display()
                ))
                .because(e)
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
                let mut file =
                    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                file.write_all(&key)?;
                file.sync_all()?;
            }
            Err(e) => return Err(Error::internal(format!("cannot read {}: {e}", path.display())).because(e)),
        }
        Ok(CellKey::cipher(key))
    }
}

impl Cipher for CellKey {
    fn seal(&self, plain: &[u8]) -> String {
        let sealed = self.0.encrypt(&Nonce::default(), plain).expect("memory is enough for a secret");
        STANDARD_NO_PAD.encode(sealed)
    }

    fn open(&self, sealed: &str) -> Option<Vec<u8>> {
        self.0.decrypt(&Nonce::default(), STANDARD_NO_PAD.decode(sealed).ok()?.as_slice()).ok()
    }
}
