//! Clients by TLS: with an authority of their own, while certificates change, and without TLS.

use crate::kept::Kept;
use crate::support::{Cloud, refusal, run};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs::write;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The door looks at its files each second.
const RELOAD_MAX: Duration = Duration::from_secs(20);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate of this machine, and its key.
    fn pair(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()))
    }
}

struct Files {
    _dir: tempfile::TempDir,
    state: PathBuf,
    chain: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

impl Files {
    fn of(authority: &Authority) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (state, chain, key, ca) = (at("cloud"), at("chain.pem"), at("key.pem"), at("ca.pem"));
        write(&ca, pem("CERTIFICATE", authority.0.der())).unwrap();
        Files { _dir: dir, state, chain, key, authority: ca }
    }

    fn put(&self, (chain, key): &(String, String)) {
        write(&self.chain, chain).unwrap();
        write(&self.key, key).unwrap();
    }

    fn words(&self) -> Vec<&str> {
        let path = |path: &'static str, of: &PathBuf| [path.to_string(), of.display().to_string()];
        let words = [
            path("--tls-cert", &self.chain),
            path("--tls-key", &self.key),
            path("--tls-ca", &self.authority),
        ];
        words.concat().into_iter().map(|word| &*Box::leak(word.into_boxed_str())).collect()
    }

    fn up(&self) -> Cloud {
        Cloud::up_with(&self.state, &[&["--machine", "simulated"], self.words().as_slice()].concat())
    }
}

/// One connection of a client that trusts the authority alone.
struct Connection(Kept<StreamOwned<ClientConnection, TcpStream>>);

impl Connection {
    fn open(cloud: &Cloud, authority: &Path) -> Connection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
        let socket = TcpStream::connect(cloud.address.strip_prefix("https://").unwrap()).unwrap();
        socket.set_read_timeout(Some(RELOAD_MAX)).unwrap();
        Connection(Kept(StreamOwned::new(client, socket)))
    }

    /// Status and body of a read; the connection is kept.
    fn get(&mut self, path: &str) -> (u16, String) {
        let answer = self.0.ask("GET", path, "", "").unwrap();
        (answer.status, answer.body)
    }

    /// What the door showed.
    fn certificate(&self) -> CertificateDer<'static> {
        self.0.0.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

/// rcgen's own needs one crate more.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn der(pair: &(String, String)) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap()
}

#[test]
fn a_certificate_is_replaced_while_connections_go_on() {
    let authority = Authority::new();
    let files = Files::of(&authority);
    let (first, second) = (authority.pair(), authority.pair());
    files.put(&first);
    let cloud = files.up();
    let open = || Connection::open(&cloud, &files.authority);
    let mut kept = open();
    let (status, body) = kept.get("/identity/v3");
    assert!(status == 200 && body.contains("https://cloud.example/identity/v3"), "{status} {body}");
    assert_eq!(kept.certificate(), der(&first));
    assert_eq!(kept.0.0.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));

    let env = String::from_utf8(run(&files.state, &["env", "admin"]).stdout).unwrap();
    let ca = files.authority.canonicalize().unwrap();
    assert!(env.contains(&format!("export OS_CACERT={}\n", ca.display())), "{env}");
    assert!(env.contains(&format!("export OS_AUTH_URL={}/identity/v3\n", cloud.address)), "{env}");
    let status = run(&files.state, &["status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));

    // Half of a new pair changes nothing.
    write(&files.chain, &second.0).unwrap();
    let log = || std::fs::read_to_string(files.state.join("door/log")).unwrap();
    let begin = Instant::now();
    while !log().contains("the certificate of before is kept") {
        assert!(begin.elapsed() < RELOAD_MAX, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut between = open();
    assert_eq!((between.get("/identity/v3").0, between.certificate()), (200, der(&first)));

    write(&files.key, &second.1).unwrap();
    let begin = Instant::now();
    loop {
        let mut next = open();
        assert_eq!(next.get("/identity/v3").0, 200);
        if next.certificate() == der(&second) {
            break;
        }
        assert!(begin.elapsed() < RELOAD_MAX, "{}", log());
    }
    assert_eq!((kept.get("/identity/v3").0, between.get("/identity/v3").0), (200, 200));
}

#[test]
fn plain_http_is_told_where_it_came_and_wrong_files_are_told_before_the_start() {
    let authority = Authority::new();
    let files = Files::of(&authority);
    let words = [&["up", "--listen", "127.0.0.1:0"], files.words().as_slice()].concat();
    assert!(refusal(&run(&files.state, &words), 1).contains("chain.pem cannot be read"));
    files.put(&(authority.pair().0, authority.pair().1));
    assert!(refusal(&run(&files.state, &words), 1).contains("are not a certificate and its key"));
    assert!(!files.state.exists());
    assert!(refusal(&run(&files.state, &words[..5]), 2).contains("--tls-key"));

    files.put(&authority.pair());
    let cloud = files.up();
    let mut socket = TcpStream::connect(cloud.address.strip_prefix("https://").unwrap()).unwrap();
    write!(socket, "GET /identity/v3 HTTP/1.1\r\nhost: cloud.example\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("This is https://cloud.example"),
        "{answer}"
    );
}
