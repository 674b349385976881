//! Who is let in by the listener for nodes: real TLS, real certificates, the real node's side.

#![allow(clippy::unwrap_used, reason = "a test")]

use base::join::{Certificate, DOCUMENT, Der, HELLO, PLANE, PROGRAMS, RENEW, Renew, Token};
use base::node::{Generation, Hello, Known, Patch};
use base::program::{Program, Runs};
use base::{Kind, Timestamp};
use fleet::plane::{Plane, Settings};
use fleet::{Fleet, authority, join, node as nodes};
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use node::remote::{self, Credentials, Remote};
use node::{Link, Node, Simulated};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use store::{Cause, Cell, Options, Schema};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(3600);

struct World {
    dir: tempfile::TempDir,
    cell: Cell,
    fleet: Fleet,
    plane: Arc<Plane>,
    address: String,
}

fn cell(dir: &std::path::Path) -> Cell {
    let engine = store::engine::sqlite::Sqlite::open(&dir.join("state.db")).unwrap();
    let cipher = store::cipher::CellKey::cipher([7; 32]);
    Cell::open(Box::new(engine), fleet::records(Schema::default()), cipher, Options::default()).unwrap()
}

/// The bytes of every program here.
const PROGRAM: &[u8] = b"a build";

impl World {
    async fn new(certificate_life: Duration) -> World {
        let dir = tempfile::tempdir().unwrap();
        let cell = cell(dir.path());
        let fleet = Fleet::new(cell.clone(), Vec::new(), Vec::new());
        let absent = || base::Error::not_found("no image");
        let image = Box::new(move |_| Box::pin(async move { Err(absent()) }) as std::pin::Pin<Box<_>>);
        let bytes = || {
            let bytes = futures_util::stream::once(async { Ok(Bytes::from_static(PROGRAM)) });
            Ok((Box::pin(bytes) as api::reply::ByteStream, PROGRAM.len() as u64))
        };
        let program = Box::new(move |_: &str| Box::pin(async move { bytes() }) as std::pin::Pin<Box<_>>);
        let plane = Plane::new(fleet.clone(), Settings { cloud: 7, image, program, certificate_life });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(plane.clone().serve(listener));
        World { dir, cell, fleet, plane, address }
    }

    async fn token(&self, uses: u32) -> Token {
        self.plane.token(Cause::step("test"), &self.address, uses, 60).await.unwrap().0
    }

    /// A machine with a directory of its own that joins.
    async fn join(&self, name: &str) -> (std::path::PathBuf, Credentials) {
        let state = self.dir.path().join(name);
        std::fs::create_dir_all(&state).unwrap();
        let mut credentials = Credentials::open(&state).unwrap();
        let arrival = remote::join(&self.token(1).await, name, &mut credentials, &state).await.unwrap();
        assert_eq!((arrival.joined.cloud, arrival.from.to_string().as_str()), (7, "127.0.0.1"));
        (state, credentials)
    }

    /// One request by hand, with this key and certificate; status, and the sentence of a refusal.
    async fn ask(&self, own: Option<(&Der, &Der)>, path: &str, body: Option<String>) -> (u16, String) {
        let (status, bytes) = self.get(own, path, body).await;
        let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        (status, body["error"]["message"].as_str().unwrap_or_default().to_string())
    }

    /// Status and body.
    async fn get(&self, own: Option<(&Der, &Der)>, path: &str, body: Option<String>) -> (u16, Bytes) {
        let mut roots = RootCertStore::empty();
        roots.add(authority::of(&self.cell).await.unwrap().certificate()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match own {
            Some((key, certificate)) => {
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.0.clone()));
                config.with_client_auth_cert(vec![CertificateDer::from(certificate.0.clone())], key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(&self.address).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = tls.connect(ServerName::try_from(PLANE).unwrap(), socket).await.unwrap();
        let http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let method = if body.is_some() { "POST" } else { "GET" };
        let request = Request::builder().method(method).uri(format!("https://{}{path}", self.address));
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    }

    async fn refuses(&self, own: Option<(&Der, &Der)>, status: u16, why: &str) {
        let (said, sentence) = self.ask(own, &format!("{DOCUMENT}?after=0.0"), None).await;
        assert!(said == status && sentence.contains(why), "{said} {sentence}");
    }
}

fn hello(name: &str, id: Uuid) -> Hello {
    Hello::of(name, id, "192.0.2.1".parse().unwrap())
}

/// The first patch of an answer.
async fn first(link: &Link, known: impl Into<Known>, wait: Duration) -> base::Result<Patch> {
    Ok(link.document(known, wait).await?.try_next().await?.unwrap())
}

/// A request for a certificate, as a node with this key makes it.
fn request(key: &KeyPair) -> Der {
    Der(CertificateParams::default().serialize_request(key).unwrap().der().to_vec())
}

fn certificate(credentials: &Credentials) -> Der {
    credentials.certificate.clone().unwrap().der
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_who_its_certificate_says_and_a_removed_one_is_nobody() {
    let world = World::new(LONG).await;
    let (_, a) = world.join("a").await;
    let link = Remote::new(&world.address, a.clone()).link();
    let other = link.hello(hello("b", a.id)).await.unwrap_err();
    assert!(other.kind() == Kind::Forbidden && other.message().contains("node a"), "{other}");
    assert_eq!(link.hello(hello("a", Uuid::nil())).await.unwrap_err().kind(), Kind::Forbidden);
    link.hello(hello("a", a.id)).await.unwrap();
    let patch = first(&link, Generation::default(), Duration::ZERO).await.unwrap();
    assert!(patch.whole && patch.changed.is_empty());
    assert_eq!(link.image(Uuid::nil()).await.err().unwrap().kind(), Kind::NotFound);

    // One address is one node's.
    let (_, b) = world.join("b").await;
    let taken = Remote::new(&world.address, b.clone()).link().hello(hello("b", b.id)).await.unwrap_err();
    assert!(taken.kind() == Kind::Conflict && taken.message().contains("192.0.2.1"), "{taken}");

    // Removed, on the connection that is open and on another.
    let remove = |tx: &mut store::Tx| {
        let id = nodes::named(tx, "a").unwrap().id;
        nodes::remove(tx, &id)
    };
    world.cell.write(Cause::step("test"), remove).await.unwrap();
    let gone = first(&link, Generation::default(), Duration::ZERO).await.unwrap_err();
    assert!(gone.kind() == Kind::Forbidden && gone.message().contains("removed"), "{gone}");
    world.refuses(Some((&a.key, &certificate(&a))), 403, "removed").await;
    // The same machine joins again, with its old key.
    world.join("a").await;
    link.hello(hello("a", a.id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_of_this_cell_nothing_is_said() {
    let world = World::new(LONG).await;
    let (_, a) = world.join("a").await;
    world.refuses(None, 401, "show their certificate").await;
    let said = world.ask(None, HELLO, Some(serde_json::to_string(&hello("a", a.id)).unwrap())).await;
    assert_eq!(said.0, 401);

    // Another cell's, for the same name and key.
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = authority::of(&cell(elsewhere.path())).await.unwrap();
    let key = KeyPair::try_from(a.key.0.as_slice()).unwrap();
    let signed = foreign.sign("a", &request(&key), LONG).unwrap();
    world.refuses(Some((&a.key, &signed.der)), 401, "not one of this cell's").await;

    // This cell's, for a key that never joined.
    let own = authority::of(&world.cell).await.unwrap();
    let stranger = KeyPair::generate().unwrap();
    let signed = own.sign("a", &request(&stranger), LONG).unwrap();
    world.refuses(Some((&Der(stranger.serialize_der()), &signed.der)), 403, "removed").await;

    // A node renews for its own key only.
    let renew = serde_json::to_string(&Renew { request: request(&stranger) }).unwrap();
    let said = world.ask(Some((&a.key, &certificate(&a))), RENEW, Some(renew)).await;
    assert!(said.0 == 403 && said.1.contains("key that it joined with"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_in_time_and_an_old_one_is_refused() {
    let world = World::new(Duration::from_secs(4)).await;
    let (state, credentials) = world.join("a").await;
    let address = "127.0.0.1".parse().unwrap();
    let settings = node::Settings::simulated("a", credentials.id, address, Simulated::default());
    let remote = Remote::new(&world.address, credentials.clone());
    let keeping = tokio::spawn({
        let (remote, state) = (remote.clone(), state.clone());
        async move { remote.keep(&Node::new(settings), &state).await }
    });
    // The first one runs out; the node has another by then.
    let refused = async {
        loop {
            let old = Some((&credentials.key, certificate(&credentials)));
            let old = old.as_ref().map(|(key, der)| (*key, der));
            let (status, why) = world.ask(old, &format!("{DOCUMENT}?after=0.0"), None).await;
            if status == 401 {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
    assert!(why.contains("has expired"), "{why}");
    let kept: Certificate = Credentials::read(&state).unwrap().unwrap().certificate.unwrap();
    assert!(kept.expires > credentials.certificate.unwrap().expires);
    first(&remote.link(), Generation::default(), Duration::ZERO).await.unwrap();
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_comes_at_once_and_its_program_to_who_is_ordered_it() {
    let world = World::new(LONG).await;
    let (_, a) = world.join("a").await;
    let (_, b) = world.join("b").await;
    let program = Program { version: "2".into(), sha256: "ab".repeat(32), size: 7 };
    let give = async || world.fleet.order([("a".to_string(), program.clone())].into()).await;
    assert_eq!(give().await.unwrap_err().kind(), Kind::NotFound);
    let link = Remote::new(&world.address, a.clone()).link();
    link.hello(hello("a", a.id)).await.unwrap();
    let runs = Runs { program: Program { version: "1".into(), ..Program::default() }, ..Runs::default() };
    let address = "192.0.2.2".parse().unwrap();
    let hello = Hello { runs: Some(runs.clone()), address, ..hello("b", b.id) };
    Remote::new(&world.address, b.clone()).link().hello(hello).await.unwrap();

    let new = first(&link, Generation::default(), Duration::ZERO).await.unwrap().generation;
    let ask = async |order: Option<Timestamp>, wait| {
        let known = Known { order, ..new.into() };
        first(&link, known, wait).await.unwrap().order
    };
    assert_eq!(ask(Some(Timestamp(0)), Duration::ZERO).await, None);
    let begin = std::time::Instant::now();
    let (told, given) = tokio::join!(ask(Some(Timestamp(0)), Duration::from_secs(9)), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        give().await
    });
    given.unwrap();
    let order = told.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5) && order.program == program);
    // One that knows it, and one that knows of none, are not told.
    assert_eq!(ask(Some(order.at), Duration::ZERO).await, None);
    assert_eq!(ask(None, Duration::ZERO).await, None);
    give().await.unwrap();
    let last = ask(Some(order.at), Duration::ZERO).await.unwrap();
    assert!(last.at > order.at);
    // Also in an answer that goes on, each once.
    let known = Known { order: Some(order.at), ..new.into() };
    let mut patches = link.document(known, Duration::from_secs(9)).await.unwrap();
    let mut next = async || patches.try_next().await.unwrap().unwrap();
    assert_eq!(next().await.order, Some(last.clone()));
    give().await.unwrap();
    let newest = next().await.order.unwrap();
    assert!(newest.at > last.at);
    // A node of an older build does not say that it follows, and takes one patch an answer.
    let own = Some((&a.key, &certificate(&a)));
    for (order, expect) in [("&order=0", Some(newest.at)), ("", None)] {
        let path = format!("{DOCUMENT}?after=0.0&wait_ms=0{order}");
        let patch: Patch = serde_json::from_slice(&world.get(own, &path, None).await.1).unwrap();
        assert!(patch.whole && patch.order.map(|order| order.at) == expect);
    }

    let get = async |of: &Credentials, sha256: &str| {
        world.ask(Some((&of.key, &certificate(of))), &format!("{PROGRAMS}{sha256}"), None).await.0
    };
    assert_eq!(get(&a, &program.sha256).await, 200);
    assert_eq!(get(&b, &program.sha256).await, 404);
    assert_eq!(get(&a, &"cd".repeat(32)).await, 404);
    assert_eq!(get(&a, "../cell.key").await, 404);
    let far = world.fleet.far("", 9);
    let seen: Vec<_> = far.iter().map(|far| (far.name.as_str(), far.runs.is_some())).collect();
    assert_eq!(seen, [("a", false), ("b", true)]);
    assert_eq!(world.fleet.far("a", 9), far[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_some_machines_and_some_time() {
    let world = World::new(LONG).await;
    let token = world.token(1).await;
    let state = world.cell.read();
    let now = Timestamp::wall();
    assert!(join::check(&state, &token.secret, now).is_ok());
    let over = join::check(&state, &token.secret, now.plus_secs(61)).unwrap_err();
    assert!(over.kind() == Kind::Unauthorized && over.message().contains("is over"), "{over}");
    assert!(
        join::check(&state, &"0".repeat(64), now).unwrap_err().message().contains("not one of this cell's")
    );

    let join = async |name: &str, token: &Token| {
        let state = world.dir.path().join(name);
        std::fs::create_dir_all(&state).unwrap();
        let mut credentials = Credentials::open(&state).unwrap();
        remote::join(token, name, &mut credentials, &state).await.map(drop)
    };
    join("a", &token).await.unwrap();
    // The answer was lost: the same machine is let in again, another is not.
    join("a", &token).await.unwrap();
    let used = join("b", &token).await.unwrap_err();
    assert!(used.kind() == Kind::Forbidden && used.message().contains("used up"), "{used}");
    assert_eq!(join("..", &world.token(1).await).await.unwrap_err().kind(), Kind::Invalid);
    // Whoever answers with another authority does not learn the secret.
    let wrong = Token { fingerprint: "0".repeat(64), ..world.token(1).await };
    let refused = join("c", &wrong).await.unwrap_err();
    assert!(refused.message().contains("is not this node's plane"), "{refused}");
}
