//! The real servers, each in its own directory and on its own port, from Debian's packages.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const START_MAX: Duration = Duration::from_secs(30);
const DEPS: &str = "is not installed; `make deps-test` installs what the tests need";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Which {
    Sqlite,
    Postgres,
    Etcd,
}

/// A server, or a directory for SQLite. It ends with this value.
pub struct Server {
    pub which: Which,
    dir: tempfile::TempDir,
    /// Of the database when it is not in `dir`.
    data: Option<PathBuf>,
    members: Vec<Member>,
    /// More arguments for each start.
    pub extra: Vec<String>,
    cells: AtomicU32,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Server {
    pub fn start(which: Which) -> Server {
        Server::with(which, 1, None, &[])
    }

    pub fn with(which: Which, members: usize, data: Option<&Path>, extra: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let new = |_| Member { client: free_port(), peer: free_port(), process: None };
        let members = (0..members).map(new).collect();
        let extra = extra.iter().map(|s| s.to_string()).collect();
        let data = data.map(Path::to_path_buf);
        let mut server = Server { which, dir, data, members, extra, cells: AtomicU32::new(0) };
        std::fs::create_dir_all(server.data()).unwrap();
        if which == Which::Postgres {
            server.init();
        }
        server.restart();
        server
    }

    /// Of a cell that nobody has used yet.
    pub fn url(&self) -> String {
        let cell = format!("cell{}", self.cells.fetch_add(1, Ordering::Relaxed));
        match self.which {
            Which::Sqlite => {
                let dir = self.data.as_deref().unwrap_or(self.dir.path());
                format!("sqlite:{}/{cell}.db", dir.display())
            }
            Which::Postgres => {
                self.psql(&format!("CREATE SCHEMA {cell}"));
                let socket = self.dir.path().display().to_string().replace('/', "%2F");
                let port = self.members[0].client;
                format!("postgres://shisa@{socket}:{port}/postgres?options=-csearch_path%3D{cell}")
            }
            Which::Etcd => {
                let hosts: Vec<_> = self.members.iter().map(|m| format!("127.0.0.1:{}", m.client)).collect();
                format!("etcd://{}/{cell}", hosts.join(","))
            }
        }
    }

    pub fn port(&self) -> u16 {
        self.members[0].client
    }

    /// The same cell, reached through another port.
    pub fn through(&self, url: &str, port: u16) -> String {
        match self.which {
            Which::Sqlite => url.into(),
            Which::Postgres => {
                let (_, options) = url.split_once('?').unwrap();
                format!("postgres://shisa@127.0.0.1:{port}/postgres?{options}")
            }
            Which::Etcd => url.replace(&format!(":{}", self.port()), &format!(":{port}")),
        }
    }

    #[allow(dead_code, reason = "of the bench")]
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|m| m.process.as_ref()).map(Child::id).collect()
    }

    /// SIGKILL, and nobody left of it.
    pub fn kill(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill_member(member));
    }

    pub fn kill_member(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts what does not run, and waits until it answers.
    pub fn restart(&mut self) {
        let until = Instant::now() + START_MAX;
        for member in 0..self.members.len() {
            if self.which != Which::Sqlite && self.members[member].process.is_none() {
                self.members[member].process = Some(self.spawn(member));
            }
        }
        while !self.is_up() {
            assert!(Instant::now() < until, "{:?} did not start: {}", self.which, self.said());
            std::thread::sleep(Duration::from_millis(20));
            for member in 0..self.members.len() {
                // A database that was killed does not start while one of its processes still ends.
                let ended =
                    self.members[member].process.as_mut().is_some_and(|p| p.try_wait().unwrap().is_some());
                if ended {
                    self.members[member].process = Some(self.spawn(member));
                }
            }
        }
    }

    fn is_up(&self) -> bool {
        match self.which {
            Which::Sqlite => true,
            Which::Postgres => self.psql_command("SELECT 1").output().unwrap().status.success(),
            Which::Etcd => self.etcdctl(&["get", "nothing"]),
        }
    }

    pub fn etcdctl(&self, words: &[&str]) -> bool {
        let ends: Vec<_> = self.members.iter().map(|m| format!("http://127.0.0.1:{}", m.client)).collect();
        let mut command = Command::new(program("etcdctl"));
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &ends.join(","), "--command-timeout=2s"])
            .args(words);
        command.output().unwrap().status.success()
    }

    fn psql_command(&self, text: &str) -> Command {
        let mut command = Command::new(postgres("psql"));
        let port = self.members[0].client.to_string();
        command.args(["-qX", "-U", "shisa", "-p", &port, "-h"]).arg(self.dir.path());
        command.args(["-d", "postgres", "-c", text]);
        command
    }

    pub fn psql(&self, text: &str) {
        let output = self.psql_command(text).output().unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or(self.dir.path().join("data"))
    }

    fn init(&self) {
        let data = self.data();
        let mut command = as_nobody(&postgres("initdb"), &[self.dir.path(), &data]);
        command
            .args(["-U", "shisa", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data);
        command.arg("-X").arg(self.dir.path().join("wal"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn spawn(&self, member: usize) -> Child {
        let mut command = match self.which {
            Which::Sqlite => unreachable!("SQLite has no server"),
            Which::Postgres => self.postgres(),
            Which::Etcd => self.etcd(member),
        };
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command.stdin(Stdio::null()).args(&self.extra).spawn().unwrap()
    }

    fn postgres(&self) -> Command {
        let mut command = as_nobody(&postgres("postgres"), &[]);
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        command.args(["-h", "127.0.0.1", "-p", &self.members[0].client.to_string()]);
        for setting in ["shared_buffers=32MB", "max_connections=40", "log_min_messages=fatal"] {
            command.args(["-c", setting]);
        }
        command
    }

    fn etcd(&self, member: usize) -> Command {
        let (client, peer) = (self.members[member].client, self.members[member].peer);
        let name = |n: usize| format!("m{n}");
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all = self.members.iter().enumerate();
        let all: Vec<_> = all.map(|(n, m)| format!("{}={}", name(n), url(m.peer))).collect();
        let mut command = as_is(&program("etcd"));
        command.args(["--name", &name(member), "--log-level", "error", "--data-dir"]);
        command.arg(self.data().join(name(member)));
        command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        command.args(["--initial-cluster", &all.join(",")]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// It ends with the thread that started it, however that ends.
fn as_is(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// PostgreSQL refuses to be root: it runs as `postgres`, whom the directories are given to.
fn as_nobody(program: &Path, give: &[&Path]) -> Command {
    if !rustix::process::geteuid().is_root() {
        return as_is(program);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let ids: Vec<u32> =
        line.into_iter().flat_map(|l| l.split(':').skip(2).take(2)).map(|n| n.parse().unwrap()).collect();
    assert_eq!(ids.len(), 2, "the user postgres {DEPS}");
    give.iter().for_each(|dir| chown(dir, Some(ids[0]), Some(ids[1])).unwrap());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &ids[0].to_string(), "--regid", &ids[1].to_string(), "--clear-groups"]);
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn program(name: &str) -> PathBuf {
    let path = Path::new("/usr/bin").join(name);
    assert!(path.exists(), "{name} {DEPS}");
    path
}

/// Of the newest version that is installed.
fn postgres(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name)).filter(|p| p.exists());
    programs.max().unwrap_or_else(|| panic!("PostgreSQL's {name} {DEPS}"))
}

/// A file system of its own and no more than this many MiB.
pub struct Small(pub tempfile::TempDir);

impl Small {
    pub fn new(mib: u64) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m,mode=755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success(), "no tmpfs could be mounted: run this test as root");
        Small(dir)
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    /// Leaves no room.
    pub fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
