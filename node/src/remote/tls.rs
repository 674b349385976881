//! TLS as a node does it: 1.3 only, the plane's certificate under its one name, signed by the cell's authority.

use super::Credentials;
use base::join::{Der, PLANE, hex};
use base::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub async fn handshake(
    config: Arc<ClientConfig>,
    socket: TcpStream,
    authority: &str,
) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(PLANE).map_err(|e| Error::internal("no name").because(e))?;
    TlsConnector::from(config).connect(name, socket).await.map_err(|e| {
        Error::unauthorized(format!("what answers at https://{authority} is not this node's plane"))
            .because(e)
    })
}

/// For a node that has joined.
pub fn with_certificate(credentials: &Credentials) -> Result<Arc<ClientConfig>> {
    let (Some(authority), Some(own)) = (&credentials.authority, &credentials.certificate) else {
        return Err(Error::invalid("this node has not joined a plane yet"));
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.0.clone())).map_err(cannot)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(credentials.key.0.clone()));
    let chain = vec![CertificateDer::from(own.der.0.clone())];
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(cannot)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(cannot)?;
    Ok(http2(config))
}

/// For a machine that has a token.
pub struct Joining {
    pub client: Arc<ClientConfig>,
    /// The authority that the plane showed, after the handshake.
    pub seen: Arc<Mutex<Option<Der>>>,
}

pub fn with_fingerprint(fingerprint: &str) -> Result<Joining> {
    let provider = Arc::new(ring::default_provider());
    let seen = Arc::new(Mutex::default());
    let verifier = Fingerprint {
        fingerprint: fingerprint.into(),
        provider: provider.clone(),
        algorithms: provider.signature_verification_algorithms,
        seen: seen.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(cannot)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Joining { client: http2(config), seen })
}

fn http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn cannot(error: rustls::Error) -> Error {
    Error::internal("TLS cannot be set up").because(error)
}

/// The chain must have an authority of this fingerprint, and stand under it as under any other.
#[derive(Debug)]
struct Fingerprint {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Arc<Mutex<Option<Der>>>,
}

impl ServerCertVerifier for Fingerprint {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let of_token = |c: &&CertificateDer<'_>| hex(&Sha256::digest(c)) == self.fingerprint;
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = chain.iter().find(of_token).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
        let inner = inner.build().map_err(|e| rustls::Error::General(e.to_string()))?;
        let verified = inner.verify_server_cert(end, &[], name, ocsp, now)?;
        *self.seen.lock().expect("no holder panics") = Some(Der(authority.to_vec()));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
