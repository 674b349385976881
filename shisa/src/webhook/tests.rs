use super::*;
use base::Id;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use compute::maintenance::Stage;
use compute::maintenance::notice::Notice;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use std::sync::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

type Heard = Arc<Mutex<Vec<String>>>;

/// Reads one request and answers it.
async fn serve(mut socket: impl AsyncRead + AsyncWrite + Unpin, answer: &str, heard: &Heard) {
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while !text.ends_with("{\"a\":1}") {
        match socket.read(&mut bytes).await {
            Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&bytes[..n])),
            _ => return,
        }
    }
    heard.lock().unwrap().push(text);
    let _ = socket.write_all(answer.as_bytes()).await;
    let _ = socket.shutdown().await;
}

/// A receiver that answers so: its port, and what it hears.
async fn receiver(answer: String) -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, heard) = (listener.local_addr().unwrap().port(), Heard::default());
    let hears = heard.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            serve(socket, &answer, &hears).await;
        }
    });
    (port, heard)
}

async fn post(url: &str, reach: Option<&Reach>, roots: Option<&std::path::Path>) -> Result<()> {
    let body = Bytes::from_static(b"{\"a\":1}");
    send::post(&Url::parse(url).unwrap(), body, Some("sha256=x"), reach, roots).await
}

fn why(outcome: Result<()>) -> String {
    outcome.unwrap_err().chain()
}

#[tokio::test]
async fn only_an_answer_of_2xx_counts_and_no_redirect_is_followed() {
    let (port, heard) = receiver("HTTP/1.1 204 No Content\r\n\r\n".into()).await;
    post(&format!("http://127.0.0.1:{port}/a?b=c"), None, None).await.unwrap();
    let request = heard.lock().unwrap().pop().unwrap();
    assert!(request.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{request}");
    for line in [
        &format!("host: 127.0.0.1:{port}"),
        "content-type: application/json",
        "x-hub-signature-256: sha256=x",
    ] {
        assert!(request.contains(&format!("{line}\r\n")), "{line}: {request}");
    }
    // An answer without an end is one, too: nothing behind its head is read.
    let (endless, _) = receiver("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nx".into()).await;
    post(&format!("http://127.0.0.1:{endless}/"), None, None).await.unwrap();

    let to =
        format!("HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\n\r\n");
    let (moved, _) = receiver(to).await;
    assert!(why(post(&format!("http://127.0.0.1:{moved}/"), None, None).await).contains("307"));
    assert!(heard.lock().unwrap().is_empty(), "it was followed");
    for (answer, expect) in [
        ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_string(), "500"),
        (format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(64 << 10)), "broke off"),
        ("SSH-2.0-dropbear\r\n".into(), "broke off"),
        (String::new(), "broke off"),
    ] {
        let (port, _) = receiver(answer).await;
        let said = why(post(&format!("http://127.0.0.1:{port}/"), None, None).await);
        assert!(said.contains(expect), "{said}");
    }
}

#[tokio::test]
async fn an_owner_leads_us_to_no_address_of_ours() {
    let (port, heard) = receiver("HTTP/1.1 204 No Content\r\n\r\n".into()).await;
    let nobody = Reach::default();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "169.254.169.254",
    ] {
        let said = why(post(&format!("http://{host}:{port}/"), Some(&nobody), None).await);
        // Where a resolver does not know a way of writing, it leads nowhere.
        assert!(said.contains("may be reached") || said.contains("cannot be found"), "{host}: {said}");
    }
    assert!(heard.lock().unwrap().is_empty());
    let allowed = Reach { allow: vec!["127.0.0.0/8".parse().unwrap()], own: vec![] };
    post(&format!("http://127.0.0.1:{port}/"), Some(&allowed), None).await.unwrap();
    assert_eq!(heard.lock().unwrap().len(), 1);
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

#[tokio::test]
async fn https_needs_a_certificate_of_a_known_authority_for_the_name() {
    let (authority, other) = (authority(), authority());
    let own = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = certificate.signed_by(&own, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.serialize_der()));
    let config =
        config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], secret).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, heard) = (listener.local_addr().unwrap().port(), Heard::default());
    let hears = heard.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(socket) = acceptor.accept(socket).await {
                serve(socket, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", &hears).await;
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (dir.path().join("known.pem"), dir.path().join("unknown.pem"));
    std::fs::write(&known, pem(authority.der())).unwrap();
    std::fs::write(&unknown, pem(other.der())).unwrap();
    let url = format!("https://127.0.0.1:{port}/");
    post(&url, None, Some(&known)).await.unwrap();
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert!(why(post(&url, None, Some(&unknown)).await).contains("no TLS"));
    assert!(why(post(&format!("https://localhost:{port}/"), None, Some(&known)).await).contains("no TLS"));
    assert_eq!(heard.lock().unwrap().len(), 1);
}

#[test]
fn a_body_is_signed_as_github_does() {
    let secret = Some(Secret::new("It's a Secret to Everybody"));
    let webhook = Webhook { secret, ..Webhook::default() };
    let expect = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(webhook.signature(b"Hello, World!").as_deref(), Some(expect));
    assert_eq!(Webhook::default().signature(b"x"), None);
}

#[test]
fn one_project_does_not_take_all_places() {
    let due = |project: u128, to: Receiver| {
        let notice = Notice { stage: Stage::Scheduled, to, made: Timestamp(0), tries: 0, due: Timestamp(0) };
        Due { event: Id::from_random(1), project: Id::from_random(project), notice, body: Value::Null }
    };
    let owner = |project| due(project, Receiver::Owner(String::new()));
    let mut all: Vec<Due> = (0..50).map(|_| owner(1)).collect();
    all.extend((0..3).map(|_| owner(2)));
    all.extend((0..50).map(|_| due(1, Receiver::Operator)));
    let sent = fair(all);
    let of = |project: u128| {
        let id: ProjectId = Id::from_random(project);
        sent.iter().filter(|d| d.project == id && d.notice.to != Receiver::Operator).count()
    };
    assert_eq!((of(1), of(2), sent.len()), (PROJECT_MAX, 3, SENDING_MAX));
}

#[test]
fn words_are_read_and_told_to_planes_in_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let words = |url: &str| Words {
        maintenance_webhook: Some(url.into()),
        webhook_secret: Some(file.clone()),
        webhook_allow: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
    };
    assert!(words("http://a/").read().unwrap_err().message().contains("cannot be read"));
    std::fs::write(&file, "short\n").unwrap();
    assert!(words("http://a/").read().unwrap_err().message().contains("less than 16 characters"));
    std::fs::write(&file, "long enough to be a secret\n").unwrap();
    assert_eq!(words("http://a/").read().unwrap().operator(), Operator::Told);
    assert!(words("a").read().is_err());
    let pairs = words("http://a/").pairs();
    let flags: Vec<&str> = pairs.iter().map(|(flag, _)| *flag).collect();
    assert_eq!(flags, ["--maintenance-webhook", "--webhook-secret", "--webhook-allow", "--webhook-allow"]);
    assert_eq!(pairs[3].1, "fd00::/8");
}
