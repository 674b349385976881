//! The cell's authority: the key that signs the certificates of its plane and its nodes.
//!
//! Made when it is first needed and kept as a record, its key sealed. What a certificate may be is decided here alone:
//! of a request only the key is taken. A node's certificate is good for the node's side of a connection, the plane's
//! for the other, so that no node can pose as the plane.

use base::join::{Certificate, Der, PLANE, hex};
use base::{Error, Result, Secret, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use store::{Cause, Cell, Record};
use uuid::Uuid;

/// Clocks of a cloud's machines are at most this far apart.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Authority {
    /// There is one.
    name: String,
    certificate: Der,
    /// PKCS #8 in hex.
    key: Secret,
}

const NAME: &str = "nodes";

impl Record for Authority {
    const KIND: &'static str = "authority";
    type Key = String;

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// A key with its certificate, both DER.
pub struct Keyed {
    pub key: Vec<u8>,
    pub certificate: CertificateDer<'static>,
}

/// The cell's authority; made when there is none.
pub async fn of(cell: &Cell) -> Result<Arc<Authority>> {
    if let Some(authority) = cell.read().get::<Authority>(&NAME.to_string()) {
        return Ok(authority.clone());
    }
    let new = Authority::new()?;
    cell.write(Cause::step("authority"), move |tx| match tx.get::<Authority>(&new.name) {
        Some(first) => Ok(first.clone()),
        None => Ok(tx.put(new.clone())?),
    })
    .await
}

impl Authority {
    fn new() -> Result<Authority> {
        let key = KeyPair::generate().map_err(cannot)?;
        let mut params = params("shisa cell", AUTHORITY_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = Der(params.self_signed(&key).map_err(cannot)?.der().to_vec());
        let key = Secret::new(hex(key.serialized_der()));
        Ok(Authority { name: NAME.into(), certificate, key })
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.certificate.0.clone())
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.certificate.0))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let lost = || Error::internal("the key of the cell's authority cannot be read");
        let key = Der::from_hex(self.key.expose()).ok_or_else(lost)?;
        let key = KeyPair::try_from(key.0).map_err(|e| lost().because(e))?;
        Issuer::from_ca_cert_der(&self.certificate(), key).map_err(cannot)
    }

    /// A certificate for the key of a node's request.
    ///
    /// Errors: `Invalid` when it is no request, or not signed with its own key.
    pub fn sign(&self, node: &str, request: &Der, life: Duration) -> Result<Certificate> {
        let wrong = |e| Error::invalid("The request for a certificate cannot be read.").because(e);
        let request = CertificateSigningRequestDer::from(request.0.as_slice());
        let request = CertificateSigningRequestParams::from_der(&request).map_err(wrong)?;
        let mut params = params(node, life);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&request.public_key, &self.issuer()?).map_err(cannot)?;
        let now = Timestamp::wall().secs();
        let after = |part: Duration| now + part.as_secs() as i64;
        Ok(Certificate { der: Der(signed.der().to_vec()), renew: after(life / 2), expires: after(life) })
    }

    /// A key and certificate of the plane's listener.
    pub fn plane(&self, life: Duration) -> Result<Keyed> {
        let key = KeyPair::generate().map_err(cannot)?;
        let mut params = params("shisa plane", life);
        params.subject_alt_names =
            CertificateParams::new([PLANE.to_string()]).map_err(cannot)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = params.signed_by(&key, &self.issuer()?).map_err(cannot)?;
        Ok(Keyed { key: key.serialize_der(), certificate: signed.into() })
    }
}

fn params(name: &str, life: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - CLOCKS_APART_MAX).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(SerialNumber::from_slice(Uuid::new_v4().as_bytes()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn cannot(error: rcgen::Error) -> Error {
    Error::internal("a certificate cannot be made").because(error)
}

/// SHA-256 of a certificate's public key, in hex: what a node is known by.
///
/// Errors: `Unauthorized` when it is no certificate.
pub fn key_of(certificate: &CertificateDer) -> Result<String> {
    let wrong = |e| Error::unauthorized("The certificate cannot be read.").because(e);
    let parsed = ParsedCertificate::try_from(certificate).map_err(wrong)?;
    Ok(hex(&Sha256::digest(parsed.subject_public_key_info().as_ref())))
}
