//! A Shisa of its own for a load run: simulated nodes, a state directory, a port that is free.

use crate::{Connection, Processes, Request, Result, Target, id, password, sign_in};
use serde_json::{Value, json};
use std::fs::read_to_string;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const BINARY_ENV: &str = "SHISA_BIN";

/// The release binary beside this benchmark, or the one that the environment names.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os(BINARY_ENV) {
        Some(path) => path.into(),
        // This is target/PROFILE/deps/NAME-HASH.
        None => std::env::current_exe()?.ancestors().nth(2).unwrap_or(Path::new(".")).join("shisa"),
    };
    if !path.is_file() {
        return Err(format!(
            "there is no {}: build it with `cargo build --release -p shisa`, or name another in {BINARY_ENV}",
            path.display()
        )
        .into());
    }
    Ok(path)
}

/// A process of its own, which ends with this.
pub struct Cloud {
    child: Child,
    /// What it says has to go somewhere.
    _out: BufReader<ChildStdout>,
    pub api: Target,
    pub password: String,
    pub project: String,
    pub answered: Duration,
    pub admitted: Duration,
}

/// Ends its process.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Cloud {
    pub fn up(binary: &Path, state: &Path, nodes: &str) -> Result<Cloud> {
        let begin = Instant::now();
        let mut command = Command::new(binary);
        command.args(["up", "--machine", "simulated", "--listen", "127.0.0.1:0"]);
        command.args(["--nodes", nodes, "--state"]);
        command.arg(state).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Guard(Some(command.spawn()?));
        let out = child.0.as_mut().and_then(|child| child.stdout.take()).ok_or("no stdout")?;
        let mut out = BufReader::new(out);
        let api = read_until(&mut out, " api ")?;
        let authority = api.trim().rsplit_once("http://").ok_or("no address")?.1.to_string();
        let mut connection = Connection::open(&authority)?;
        connection.call("", &Request::new("GET", "/identity/v3", None))?;
        let answered = begin.elapsed();
        let yaml = read_to_string(state.join("clouds.yaml"))?;
        let word = yaml.lines().find_map(|line| line.trim().strip_prefix("password: "));
        let word = word.ok_or("no password in clouds.yaml")?.to_string();
        let body = sign_in(password(&word));
        connection.call("", &Request::new("POST", "/identity/v3/auth/tokens", Some(&body)))?;
        let admitted = begin.elapsed();
        let token = connection.header("x-subject-token").ok_or("no token")?.to_string();
        let answer: Value = serde_json::from_slice(connection.body())?;
        let project = id(&answer["token"], "project")?;
        read_until(&mut out, " up ")?;
        let child = child.0.take().ok_or("no process")?;
        let processes = Processes::Tree(child.id());
        let api = Target { authority, token, processes };
        Ok(Cloud { child, _out: out, api, password: word, project, answered, admitted })
    }

    /// A network with a subnet for 65,000 ports, in a project without quotas; its id.
    pub fn network(&self, name: &str) -> Result<String> {
        let project = &self.project;
        let body = json!({"quota_set": {"instances": -1, "cores": -1, "ram": -1}});
        self.api.call("PUT", &format!("/compute/v2.1/os-quota-sets/{project}"), Some(&body))?;
        let body = json!({"quota": {"network": -1, "port": -1, "subnet": -1, "security_group_rule": -1}});
        self.api.call("PUT", &format!("/network/v2.0/quotas/{project}"), Some(&body))?;
        self.network_of(name, "10.0.0.0/16")
    }

    /// A network with one subnet; its id.
    pub fn network_of(&self, name: &str, cidr: &str) -> Result<String> {
        let body = json!({"network": {"name": name}});
        let network = id(&self.api.call("POST", "/network/v2.0/networks", Some(&body))?, "network")?;
        let body = json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": cidr}});
        self.api.call("POST", "/network/v2.0/subnets", Some(&body))?;
        Ok(network)
    }

    /// An image that servers may start from; its id.
    pub fn image(&self, name: &str) -> Result<String> {
        let body = json!({"name": name, "disk_format": "raw", "container_format": "bare"});
        let image = self.api.call("POST", "/image/v2/images", Some(&body))?;
        let image = image["id"].as_str().ok_or("an image without an id")?.to_string();
        let mut request = Request::new("PUT", &format!("/image/v2/images/{image}/file"), None);
        request.kind = "application/octet-stream";
        request.body = vec![0; 64 << 10];
        Connection::open(&self.api.authority)?.call(&self.api.token, &request)?;
        Ok(image)
    }
}

fn read_until(out: &mut impl BufRead, word: &str) -> Result<String> {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if out.read_line(&mut line)? == 0 {
            return Err(format!("shisa ended without '{word}':\n{said}").into());
        }
        if line.contains(word) {
            return Ok(line);
        }
        said += &line;
    }
}
