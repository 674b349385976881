//! The gates on a copy: `conformance`, the API as clients use it, answered by the candidate; `rehearsal`, switched to the
//! candidate and back under a load, with no request that fails and the same records on both at the end.

use super::gates::Sides;
use super::ground::Ground;
use super::inside;
use super::record::Rollout;
use super::suite;
use crate::clouds::Auth;
use crate::http::Client;
use crate::state::Directory;
use base::{Error, Result};
use hyper::Method;
use serde_json::{Value, json};
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::process::Command;

/// There and back again so often.
const ROUNDS: usize = 3;
/// Between two switches.
const BETWEEN: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(5);
/// Requests without which nothing was rehearsed.
const REQUESTS_MIN: usize = 30;
/// An operator's suite.
const COMMAND_MAX: Duration = Duration::from_secs(4 * 3600);
const SUITE_MAX: Duration = Duration::from_secs(300);

/// A copy, and who may use it.
pub struct Stage<'a> {
    pub ground: &'a Ground,
    pub rollout: &'a Rollout,
    /// The administrator: theirs is everything in the copy.
    pub admin: &'a Auth,
}

impl Stage<'_> {
    fn sides(&self) -> Sides<'_> {
        let (old, new) = (&self.rollout.from.name, &self.rollout.to.name);
        Sides { planes: &self.ground.planes, old, new }
    }

    /// The candidate answers clients as it is to.
    ///
    /// Errors: which call is answered wrongly; that the command does not end well.
    pub async fn conformance(&self, directory: &Directory, command: Option<&str>) -> Result<String> {
        self.ground.planes.promote(&self.rollout.to.name).await?;
        match command {
            Some(command) => self.command(directory, command).await,
            None => {
                let late = |e| Error::unavailable("the suite does not end").because(e);
                let calls = tokio::time::timeout(SUITE_MAX, self.suite()).await.map_err(late)??;
                Ok(format!("{calls} calls of the built-in suite are answered as they should be"))
            }
        }
    }

    async fn suite(&self) -> Result<usize> {
        let user = suite::user(&self.ground.directory, self.admin).await?;
        suite::run(&self.ground.directory, &user).await
    }

    /// The administrator's password opens the real cloud, too: nobody who is given it may be led there.
    ///
    /// Errors: `Conflict` when the catalogue of the copy leads elsewhere.
    async fn enclosed(&self) -> Result<()> {
        let client = Client::login(&self.ground.directory, self.admin).await?;
        let catalogue = client.get("/identity/v3/auth/catalog").await?;
        match inside::leads_outside(&catalogue) {
            Some(url) => Err(Error::conflict(format!(
                "the copy's catalogue leads to {url:?}, which is not in the copy: the command is not run"
            ))),
            None => Ok(()),
        }
    }

    /// Runs an operator's command with the copy in its environment, and no other cloud; what it says goes to a file.
    async fn command(&self, directory: &Directory, command: &str) -> Result<String> {
        self.enclosed().await?;
        let log = directory.conformance_log();
        let file = private(&log)?;
        let auth = self.admin;
        let mut shell = Command::new("/bin/sh");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"OS_")) {
            shell.env_remove(name);
        }
        let mut child = shell
            .args(["-c", command])
            .env("OS_AUTH_URL", format!("{}/identity/v3", self.ground.address))
            .env("OS_USERNAME", &auth.username)
            .env("OS_PASSWORD", &auth.password)
            .env("OS_PROJECT_NAME", &auth.project_name)
            .env("OS_USER_DOMAIN_NAME", &auth.user_domain_name)
            .env("OS_PROJECT_DOMAIN_NAME", &auth.project_domain_name)
            .env("OS_REGION_NAME", crate::clouds::REGION)
            .env("OS_IDENTITY_API_VERSION", "3")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|e| Error::unavailable("the conformance command cannot be started").because(e))?;
        let _group = Group(child.id());
        let late = |e| Error::unavailable("the conformance command does not end").because(e);
        let status = tokio::time::timeout(COMMAND_MAX, child.wait()).await.map_err(late)??;
        match status.success() {
            true => Ok(format!("`{command}` ended well; {} has what it said", log.display())),
            false => Err(Error::conflict(format!(
                "`{command}` ended with {status}; {} has what it said",
                log.display()
            ))),
        }
    }

    /// To the candidate and back, under a load.
    ///
    /// Errors: a request that failed; a switch that went wrong; records or changes that differ.
    pub async fn rehearse(&self) -> Result<String> {
        let (old, new) = (&self.rollout.from.name, &self.rollout.to.name);
        let planes = &self.ground.planes;
        if planes.active().as_deref() != Some(old) {
            planes.promote(old).await?;
        }
        let load = Load::default();
        let clients = self.clients().await?;
        let switched = async {
            let mut held_ms: f64 = 0.0;
            for to in [new, old].into_iter().cycle().take(2 * ROUNDS) {
                tokio::time::sleep(BETWEEN).await;
                held_ms = held_ms.max(planes.promote(to).await?.held_ms);
            }
            tokio::time::sleep(BETWEEN).await;
            load.stop.store(true, Relaxed);
            Ok::<_, Error>(held_ms)
        };
        let switched = async {
            let outcome = switched.await;
            load.stop.store(true, Relaxed);
            outcome
        };
        let [first, second, third] = &clients;
        let (held_ms, first, second, third) =
            tokio::join!(switched, load.work(0, first), load.work(1, second), load.work(2, third));
        let held_ms = held_ms?;
        let failed = |e| Error::conflict("a request failed while the planes were switched").because(e);
        first.and(second).and(third).map_err(failed)?;
        let requests = load.requests.load(Relaxed);
        if requests < REQUESTS_MIN {
            return Err(Error::unavailable(format!("only {requests} requests were answered meanwhile")));
        }
        // More kinds of changes for the candidate to try again.
        let late = |e| Error::unavailable("the suite does not end").because(e);
        tokio::time::timeout(SUITE_MAX, self.suite()).await.map_err(late)??;
        let changes = self.sides().changes().await?;
        let records = self.sides().digest().await?;
        let switches = 2 * ROUNDS;
        Ok(format!(
            "{switches} switches there and back, mutations held at most {held_ms:.1} ms, {requests} requests and \
             none failed; {records}; {changes}"
        ))
    }

    async fn clients(&self) -> Result<[Client; 3]> {
        let user = suite::user(&self.ground.directory, self.admin).await?;
        let one = || Client::login(&self.ground.directory, &user);
        Ok([one().await?, one().await?, one().await?])
    }
}

/// A file for this user only, empty: a suite may say the password that it was given.
fn private(path: &Path) -> Result<File> {
    let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    // One of a version before may have been readable.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// A command with all that it started; what is left of it ends with this.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            // There may be nobody left.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// What clients do while planes are switched.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    requests: AtomicUsize,
}

impl Load {
    /// Makes, reads, changes and removes networks, and nothing else than that may come of it.
    async fn work(&self, n: usize, client: &Client) -> Result<()> {
        for turn in 0_usize.. {
            if self.stop.load(Relaxed) {
                break;
            }
            let name = format!("rehearsal-{n}-{turn}");
            let made = self.call(
                client,
                Method::POST,
                "/network/v2.0/networks",
                json!({"network": {"name": name}}),
                201,
            );
            let path = format!("/network/v2.0/networks/{}", crate::http::text(&made.await?["network"]["id"]));
            let seen = self.call(client, Method::GET, &path, Value::Null, 200).await?;
            if seen["network"]["name"] != name.as_str() {
                return Err(Error::conflict(format!("GET {path} answers with another network")));
            }
            let changed = json!({"network": {"description": name}});
            self.call(client, Method::PUT, &path, changed, 200).await?;
            self.call(client, Method::DELETE, &path, Value::Null, 204).await?;
            self.call(client, Method::GET, &path, Value::Null, 404).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn call(
        &self,
        client: &Client,
        method: Method,
        path: &str,
        body: Value,
        expect: u16,
    ) -> Result<Value> {
        let answer = client.expect(method, path, &body, expect).await?;
        self.requests.fetch_add(1, Relaxed);
        Ok(answer)
    }
}
