//! What a node keeps of its place in a cell: its key, its certificate, the authority that it believes. One file, 0600.

use crate::file;
use base::join::{Certificate, Der};
use base::{Error, Result};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};
use std::path::Path;
use uuid::Uuid;

const FILE: &str = "credentials.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credentials {
    /// The node's, made here and kept for its life.
    pub id: Uuid,
    /// PKCS #8; it never leaves the machine.
    pub key: Der,
    /// None before the node has joined.
    pub certificate: Option<Certificate>,
    /// The certificate of the cell's authority.
    pub authority: Option<Der>,
}

impl Credentials {
    /// Those of a directory; a key is made, and written, where there is none.
    pub fn open(state: &Path) -> Result<Credentials> {
        if let Some(credentials) = Credentials::read(state)? {
            return Ok(credentials);
        }
        let key = Der(KeyPair::generate().map_err(cannot)?.serialize_der());
        let credentials = Credentials { id: Uuid::new_v4(), key, certificate: None, authority: None };
        credentials.write(state)?;
        Ok(credentials)
    }

    pub fn read(state: &Path) -> Result<Option<Credentials>> {
        file::read_json(&state.join(FILE))
    }

    pub(super) fn write(&self, state: &Path) -> Result<()> {
        file::write_json(&state.join(FILE), self)
    }

    pub fn has_joined(&self) -> bool {
        self.certificate.is_some() && self.authority.is_some()
    }

    /// PKCS #10 with the public key and nothing else: what a certificate says is the plane's to decide.
    pub(super) fn request(&self) -> Result<Der> {
        let key = KeyPair::try_from(self.key.0.as_slice()).map_err(cannot)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(cannot)?;
        Ok(Der(request.der().to_vec()))
    }
}

fn cannot(error: rcgen::Error) -> Error {
    Error::internal("the node's key cannot be used").because(error)
}
