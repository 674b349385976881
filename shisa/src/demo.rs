//! `shisa demo`: what a person would do first, through the API alone: a project with a user, a network behind a
//! router, a key, rules for SSH and ping, a server with a floating address; then it waits until SSH answers.
//!
//! Everything is looked up by its name first, so a second run finds what the first one made.

use crate::cli::Machine;
use crate::clouds::{Auth, Clouds};
use crate::first::PUBLIC;
use crate::http::{Client, text};
use crate::image;
use crate::progress::{Progress, say};
use crate::state::{self, Directory};
use base::{Error, Kind, Result};
use hyper::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The name of everything here.
const DEMO: &str = "demo";
const CIDR: &str = "10.10.0.0/24";
const FLAVOR: &str = "m1.nano";
/// A boot under emulation on a busy machine.
const SSH_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const TRY_MAX: Duration = Duration::from_secs(2);

/// The command: for a cloud that is up.
pub async fn run(directory: &Directory, image: Option<&Path>, begin: Instant) -> Result<()> {
    let progress = Progress::since(begin);
    directory.need_running()?;
    make(directory, image, &progress, async {}).await
}

/// Makes it all. A server is asked for only when `nodes` are there.
pub async fn make(
    directory: &Directory,
    file: Option<&Path>,
    progress: &Progress,
    nodes: impl Future<Output = ()>,
) -> Result<()> {
    let prepared = async {
        let admin = image::admin(directory).await?;
        let image = image::upload(&admin, file, progress).await?;
        let user = user(directory, &admin).await?;
        progress.step("project", format_args!("{DEMO}, with a user of this name"));
        let network = network(&user).await?;
        progress.step("network", format_args!("{CIDR} behind a router to {PUBLIC}"));
        key(&user, directory).await?;
        group(&user).await?;
        Ok::<_, Error>((user, image, network))
    };
    let (prepared, ()) = tokio::join!(prepared, nodes);
    let (user, image, network) = prepared?;
    let server = server(&user, &image, &network).await?;
    let floating = floating(&user, &server).await?;
    progress.step("server", format_args!("{DEMO} at {floating}"));
    let ids = directory.need_ids()?;
    match ssh_answers(&user, ids.machine, &server, &floating).await? {
        Answer::Ssh(banner) => progress.step("ssh", format_args!("answers at {floating}: {banner}")),
        Answer::Silent(state) => progress.step("ssh", format_args!("not awaited: the server is {state}")),
    }
    let console = directory.node(&ids.node_name).join("vms").join(&server).join("qemu/console.log");
    tell(directory, &floating, (ids.machine == Machine::Qemu).then_some(console.as_path()));
    Ok(())
}

/// The first with this name in a list, or none.
async fn named(client: &Client, path: &str, key: &str, name: &str) -> Result<Option<String>> {
    let join = if path.contains('?') { '&' } else { '?' };
    let found = client.get(&format!("{path}{join}name={name}")).await?;
    Ok(found[key].get(0).map(|one| text(&one["id"])))
}

/// The one with this name; made with `body` when there is none.
async fn ensure(client: &Client, path: &str, one: &str, many: &str, body: Value) -> Result<String> {
    let name = text(&body["name"]);
    if let Some(id) = named(client, path, many, &name).await? {
        return Ok(id);
    }
    let path = path.split('?').next().unwrap_or(path);
    Ok(text(&client.post(path, json!({one: body})).await?[one]["id"]))
}

/// The demo's user, logged in; its password is in `clouds.yaml`.
async fn user(directory: &Directory, admin: &Client) -> Result<Client> {
    let mut clouds = Clouds::open(directory.clouds())?;
    let auth_url = clouds.get("admin").map(|entry| entry.auth.auth_url.clone()).unwrap_or_default();
    let auth = clouds.make(DEMO, &auth_url)?.auth;
    match Client::login(directory, &auth).await {
        Err(error) if error.kind() == Kind::Unauthorized => {}
        outcome => return outcome,
    }
    let project = json!({"name": DEMO, "domain_id": "default", "description": "Made by shisa demo"});
    let project =
        ensure(admin, "/identity/v3/projects?domain_id=default", "project", "projects", project).await?;
    let id = person(admin, &auth).await?;
    let role = named(admin, "/identity/v3/roles", "roles", "member").await?;
    let role = role.ok_or_else(|| Error::not_found("this cloud has no role member"))?;
    admin.put(&format!("/identity/v3/projects/{project}/users/{id}/roles/{role}"), Value::Null).await?;
    Client::login(directory, &auth).await
}

/// The user with the password that we know.
async fn person(admin: &Client, auth: &Auth) -> Result<String> {
    let user = json!({"name": DEMO, "domain_id": "default", "password": auth.password});
    match named(admin, "/identity/v3/users?domain_id=default", "users", DEMO).await? {
        Some(id) => {
            let password = json!({"user": {"password": auth.password}});
            admin.call(Method::PATCH, &format!("/identity/v3/users/{id}"), &password).await?;
            Ok(id)
        }
        None => Ok(text(&admin.post("/identity/v3/users", json!({"user": user})).await?["user"]["id"])),
    }
}

/// The network's id, with a subnet that a router joins to the external network.
async fn network(user: &Client) -> Result<String> {
    let own = |what: &str| format!("/network/v2.0/{what}?project_id={}", user.project);
    let network = ensure(user, &own("networks"), "network", "networks", json!({"name": DEMO})).await?;
    let subnet = json!({"name": DEMO, "network_id": network, "ip_version": 4, "cidr": CIDR});
    let subnet = ensure(user, &own("subnets"), "subnet", "subnets", subnet).await?;
    if named(user, &own("routers"), "routers", DEMO).await?.is_none() {
        let external = external(user).await?;
        let router = json!({"name": DEMO, "external_gateway_info": {"network_id": external}});
        let router = ensure(user, &own("routers"), "router", "routers", router).await?;
        let path = format!("/network/v2.0/routers/{router}/add_router_interface");
        user.put(&path, json!({"subnet_id": subnet})).await?;
    }
    Ok(network)
}

async fn external(user: &Client) -> Result<String> {
    let found = named(user, "/network/v2.0/networks?router:external=true", "networks", PUBLIC).await?;
    found.ok_or_else(|| Error::not_found(format!("this cloud has no external network {PUBLIC}")))
}

/// A key pair of the cloud's making; its private half goes to a file of ours.
async fn key(user: &Client, directory: &Directory) -> Result<()> {
    let path = format!("/compute/v2.1/os-keypairs/{DEMO}");
    match user.get(&path).await {
        Ok(_) if directory.demo_key().exists() => return Ok(()),
        // Its private half is lost.
        Ok(_) => drop(user.delete(&path).await?),
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    let made = user.post("/compute/v2.1/os-keypairs", json!({"keypair": {"name": DEMO}})).await?;
    let private = text(&made["keypair"]["private_key"]);
    state::write(&directory.demo_key(), private.as_bytes(), 0o600)
}

/// A security group that lets SSH and ping in.
async fn group(user: &Client) -> Result<()> {
    let groups = format!("/network/v2.0/security-groups?project_id={}", user.project);
    if named(user, &groups, "security_groups", DEMO).await?.is_some() {
        return Ok(());
    }
    let group = json!({"name": DEMO, "description": "SSH and ping from anywhere"});
    let group = ensure(user, &groups, "security_group", "security_groups", group).await?;
    let rule = |protocol: &str, port: Value| {
        json!({"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", "protocol": protocol,
               "port_range_min": port, "port_range_max": port})
    };
    let rules = json!({"security_group_rules": [rule("tcp", json!(22)), rule("icmp", Value::Null)]});
    user.post("/network/v2.0/security-group-rules", rules).await.map(drop)
}

async fn server(user: &Client, image: &str, network: &str) -> Result<String> {
    if let Some(id) = named(user, "/compute/v2.1/servers", "servers", DEMO).await? {
        return Ok(id);
    }
    let flavor = flavor(user).await?;
    let server = json!({
        "name": DEMO, "imageRef": image, "flavorRef": flavor, "networks": [{"uuid": network}],
        "key_name": DEMO, "security_groups": [{"name": DEMO}],
    });
    Ok(text(&user.post("/compute/v2.1/servers", json!({"server": server})).await?["server"]["id"]))
}

async fn flavor(user: &Client) -> Result<String> {
    let flavors = user.get("/compute/v2.1/flavors").await?;
    let found = flavors["flavors"].as_array().into_iter().flatten().find(|f| f["name"] == FLAVOR);
    found
        .map(|f| text(&f["id"]))
        .ok_or_else(|| Error::not_found(format!("this cloud has no flavor {FLAVOR}")))
}

/// The floating address of the server's first port.
async fn floating(user: &Client, server: &str) -> Result<String> {
    let ports = user.get(&format!("/network/v2.0/ports?device_id={server}")).await?;
    let Some(port) = ports["ports"].get(0).map(|port| text(&port["id"])) else {
        return Err(why(user, server).await);
    };
    let found = user.get(&format!("/network/v2.0/floatingips?port_id={port}")).await?;
    if let Some(one) = found["floatingips"].get(0) {
        return Ok(text(&one["floating_ip_address"]));
    }
    let new = json!({"floating_network_id": external(user).await?, "port_id": port});
    let made = user.post("/network/v2.0/floatingips", json!({"floatingip": new})).await?;
    Ok(text(&made["floatingip"]["floating_ip_address"]))
}

/// The error that a server without a port has.
async fn why(user: &Client, server: &str) -> Error {
    match user.get(&format!("/compute/v2.1/servers/{server}")).await {
        Ok(answer) => failed(&answer["server"]),
        Err(error) => error,
    }
}

fn failed(server: &Value) -> Error {
    let fault = text(&server["fault"]["message"]);
    Error::unavailable(format!("the server {DEMO} is {}: {fault}", text(&server["status"])))
}

/// How the wait for a server ended.
enum Answer {
    Ssh(String),
    /// It is in this state and nothing will answer: a person stopped it, or it is simulated.
    Silent(String),
}

async fn ssh_answers(user: &Client, machine: Machine, server: &str, floating: &str) -> Result<Answer> {
    let begin = Instant::now();
    loop {
        let seen = user.get(&format!("/compute/v2.1/servers/{server}")).await?["server"].take();
        match text(&seen["status"]).as_str() {
            "ERROR" => return Err(failed(&seen)),
            "BUILD" | "REBOOT" | "HARD_REBOOT" | "UNKNOWN" => {}
            "ACTIVE" if machine == Machine::Simulated => {
                return Ok(Answer::Silent("ACTIVE, simulated".into()));
            }
            "ACTIVE" => {
                if let Some(banner) = banner(floating).await {
                    return Ok(Answer::Ssh(banner));
                }
            }
            other => return Ok(Answer::Silent(other.to_string())),
        }
        if begin.elapsed() > SSH_MAX {
            return Err(Error::unavailable(format!(
                "SSH at {floating} did not answer in {} s; `openstack console log show {DEMO}` may say why",
                SSH_MAX.as_secs()
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What SSH says first.
async fn banner(address: &str) -> Option<String> {
    let talk = async {
        let mut socket = TcpStream::connect((address, 22)).await.ok()?;
        let mut first = [0; 64];
        let n = socket.read(&mut first).await.ok()?;
        let line = String::from_utf8_lossy(&first[..n]).lines().next()?.to_string();
        line.starts_with("SSH-").then_some(line)
    };
    tokio::time::timeout(TRY_MAX, talk).await.ok().flatten()
}

/// Where things are.
fn tell(directory: &Directory, floating: &str, console: Option<&Path>) {
    let state = directory.path().display();
    say("");
    say(format_args!(
        "  clients   {}: clouds shisa-admin and shisa-demo; or eval \"$(shisa env demo --state {state})\"",
        directory.clouds().display()
    ));
    if let Some(console) = console {
        say(format_args!("  console   {}", console.display()));
        let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null";
        say(format_args!(
            "  log in    ssh -i {} {options} cirros@{floating}",
            directory.demo_key().display()
        ));
    }
    say(format_args!("  stop      Ctrl-C, or shisa down --state {state}"));
    say("");
}
