//! The built-in contract suite: what clients do most, as a client of the APIs alone, and what they must be refused.
//!
//! It is short by intent: a rollout waits for it. OpenStack's own suites are run with `--conformance`.

use super::ground::NODE;
use crate::clouds::{Auth, DOMAIN};
use crate::http::{Client, text};
use crate::state::Directory;
use base::{Error, Result};
use hyper::Method;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A simulated server is up in far less.
const ACTIVE_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const NAME: &str = "shisa-contract";
const CIDR: &str = "10.213.0.0/24";
/// Of the external network. Source: RFC 5737, TEST-NET-2.
const OUTSIDE: &str = "198.51.100.0/24";
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";
/// Services that the catalogue must have.
const SERVICES: [&str; 4] = ["identity", "network", "compute", "image"];
const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA contract";
const BYTES: &[u8] = b"these are the bytes of an image";

struct Suite {
    client: Client,
    calls: AtomicUsize,
}

/// A user who may do everything, with a project of its own: nothing that clients have is in its way, or in its quota.
///
/// Errors: what keeps the administrator from making one.
pub async fn user(copy: &Directory, admin: &Auth) -> Result<Auth> {
    let name = format!("{NAME}-{}", Uuid::new_v4().simple());
    let auth = Auth {
        auth_url: String::new(),
        username: name.clone(),
        password: Uuid::new_v4().to_string(),
        project_name: name.clone(),
        user_domain_name: DOMAIN.into(),
        project_domain_name: DOMAIN.into(),
        more: admin.more.clone(),
    };
    let admin = Client::login(copy, admin).await?;
    let project = json!({"project": {"name": name, "domain_id": "default"}});
    let project = text(&admin.post("/identity/v3/projects", project).await?["project"]["id"]);
    let user = json!({"user": {"name": name, "domain_id": "default", "password": auth.password}});
    let user = text(&admin.post("/identity/v3/users", user).await?["user"]["id"]);
    let roles = admin.get("/identity/v3/roles?name=admin").await?;
    let role = text(&roles["roles"][0]["id"]);
    admin.put(&format!("/identity/v3/projects/{project}/users/{user}/roles/{role}"), Value::Null).await?;
    Ok(auth)
}

/// Runs it all; how many calls were made.
///
/// Errors: the first answer that is not what it should be.
pub async fn run(copy: &Directory, auth: &Auth) -> Result<usize> {
    let wrong = Auth { password: format!("not {}", auth.password), ..auth.clone() };
    if Client::login(copy, &wrong).await.is_ok() {
        return Err(Error::conflict("a wrong password is let in"));
    }
    let suite = Suite { client: Client::login(copy, auth).await?, calls: AtomicUsize::new(2) };
    suite.catalogue().await?;
    let network = suite.network().await?;
    let image = suite.image().await?;
    suite.server(&network, &image).await?;
    suite.network_gone(&network).await?;
    suite.quota().await?;
    suite.gone("/image/v2/images", &image).await?;
    Ok(suite.calls.load(Relaxed))
}

struct Network {
    network: String,
    subnet: String,
    port: String,
    outside: Outside,
    group: String,
}

struct Outside {
    network: String,
    subnet: String,
    router: String,
    floating: String,
}

impl Suite {
    async fn call(&self, method: Method, path: &str, body: Value, expect: u16) -> Result<Value> {
        self.calls.fetch_add(1, Relaxed);
        self.client.expect(method, path, &body, expect).await
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, Value::Null, 200).await
    }

    async fn post(&self, path: &str, body: Value, expect: u16) -> Result<Value> {
        self.call(Method::POST, path, body, expect).await
    }

    /// Whether it is there, in its list too.
    async fn of(&self, path: &str, id: &str) -> Result<Value> {
        let one = self.get(&format!("{path}/{id}")).await?;
        let many = self.get(path).await?;
        let listed = many
            .as_object()
            .is_some_and(|o| o.values().filter_map(Value::as_array).flatten().any(|v| v["id"] == id));
        match listed {
            true => Ok(one),
            false => Err(Error::conflict(format!("GET {path} does not list {id}"))),
        }
    }

    async fn delete(&self, path: &str, id: &str) -> Result<()> {
        self.call(Method::DELETE, &format!("{path}/{id}"), Value::Null, 204).await.map(drop)
    }

    /// Deletes it; then there is none.
    async fn gone(&self, path: &str, id: &str) -> Result<()> {
        self.delete(path, id).await?;
        self.call(Method::GET, &format!("{path}/{id}"), Value::Null, 404).await.map(drop)
    }

    async fn same(&self, path: &str, id: &str, at: &[&str], expect: Value) -> Result<()> {
        let seen = self.of(path, id).await?;
        let found = at.iter().fold(&seen, |value, key| &value[*key]);
        match *found == expect {
            true => Ok(()),
            false => Err(Error::conflict(format!(
                "GET {path}/{id} has {found} for {}, not {expect}",
                at.join(".")
            ))),
        }
    }

    async fn catalogue(&self) -> Result<()> {
        let found = self.get("/identity/v3/auth/catalog").await?;
        let services = found["catalog"].as_array().cloned().unwrap_or_default();
        let missing = SERVICES.iter().find(|name| !services.iter().any(|s| s["type"] == **name));
        if let Some(missing) = missing {
            return Err(Error::conflict(format!("the catalogue has no service {missing}")));
        }
        for path in ["/identity/v3/projects", "/compute/v2.1/flavors/detail", "/compute/v2.1/os-hypervisors"]
        {
            self.get(path).await?;
        }
        // Shapes of refusals.
        self.call(Method::GET, "/compute/v2.1/nothing", Value::Null, 404).await?;
        self.call(Method::GET, &format!("/network/v2.0/networks/{NOBODY}"), Value::Null, 404).await?;
        self.post("/network/v2.0/networks", json!({"network": {"no_such_field": 1}}), 400).await?;
        self.post("/network/v2.0/networks", json!([]), 400).await.map(drop)
    }

    async fn network(&self) -> Result<Network> {
        let v2 = |what: &str| format!("/network/v2.0/{what}");
        let (networks, subnets, ports) = (v2("networks"), v2("subnets"), v2("ports"));
        let id = |of: &Value, one: &str| text(&of[one]["id"]);
        let made = self.post(&networks, json!({"network": {"name": NAME}}), 201).await?;
        let network = id(&made, "network");
        let renamed = json!({"network": {"description": "changed"}});
        self.call(Method::PUT, &format!("{networks}/{network}"), renamed, 200).await?;
        self.same(&networks, &network, &["network", "description"], json!("changed")).await?;
        let new = json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": CIDR, "name": NAME}});
        let subnet = id(&self.post(&subnets, new.clone(), 201).await?, "subnet");
        self.same(&subnets, &subnet, &["subnet", "cidr"], json!(CIDR)).await?;
        // The same range again overlaps.
        self.post(&subnets, new, 400).await?;
        let group = json!({"security_group": {"name": NAME}});
        let groups = v2("security-groups");
        let group = id(&self.post(&groups, group, 201).await?, "security_group");
        self.of(&groups, &group).await?;
        let rule = json!({"security_group_rule": {
            "security_group_id": group, "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp",
            "port_range_min": 22, "port_range_max": 22,
        }});
        self.post(&v2("security-group-rules"), rule.clone(), 201).await?;
        self.post(&v2("security-group-rules"), rule, 409).await?;
        let new = json!({"port": {"network_id": network, "name": NAME, "security_groups": [group]}});
        let port = id(&self.post(&ports, new, 201).await?, "port");
        self.same(&ports, &port, &["port", "security_groups"], json!([group])).await?;
        // Its port holds it.
        self.call(Method::DELETE, &format!("{networks}/{network}"), Value::Null, 409).await?;
        let outside = self.outside(&subnet, &port).await?;
        Ok(Network { network, subnet, port, outside, group })
    }

    /// A router to an external network and a floating address of it. The network is the suite's own: those of the cloud
    /// may have no address left.
    async fn outside(&self, subnet: &str, port: &str) -> Result<Outside> {
        let new = json!({"network": {"name": NAME, "router:external": true}});
        let external = text(&self.post("/network/v2.0/networks", new, 201).await?["network"]["id"]);
        let path = format!("/network/v2.0/networks?router:external=true&name={NAME}");
        let found = self.get(&path).await?;
        if !found["networks"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["id"] == external.as_str()))
        {
            return Err(Error::conflict(format!("GET {path} does not list {external}")));
        }
        let new = json!({"subnet": {
            "network_id": external, "ip_version": 4, "cidr": OUTSIDE, "enable_dhcp": false, "name": NAME,
        }});
        let outside = text(&self.post("/network/v2.0/subnets", new, 201).await?["subnet"]["id"]);
        let routers = "/network/v2.0/routers";
        let new = json!({"router": {"name": NAME, "external_gateway_info": {"network_id": external}}});
        let router = text(&self.post(routers, new, 201).await?["router"]["id"]);
        self.of(routers, &router).await?;
        let interface = json!({"subnet_id": subnet});
        let path = format!("{routers}/{router}/add_router_interface");
        self.call(Method::PUT, &path, interface.clone(), 200).await?;
        self.call(Method::DELETE, &format!("{routers}/{router}"), Value::Null, 409).await?;
        let floatings = "/network/v2.0/floatingips";
        let new = json!({"floatingip": {"floating_network_id": external, "port_id": port}});
        let floating = text(&self.post(floatings, new, 201).await?["floatingip"]["id"]);
        self.same(floatings, &floating, &["floatingip", "port_id"], json!(port)).await?;
        Ok(Outside { network: external, subnet: outside, router, floating })
    }

    async fn network_gone(&self, of: &Network) -> Result<()> {
        let Outside { network, subnet, router, floating } = &of.outside;
        self.gone("/network/v2.0/floatingips", floating).await?;
        let path = format!("/network/v2.0/routers/{router}/remove_router_interface");
        self.call(Method::PUT, &path, json!({"subnet_id": of.subnet}), 200).await?;
        self.gone("/network/v2.0/routers", router).await?;
        self.gone("/network/v2.0/subnets", subnet).await?;
        self.gone("/network/v2.0/networks", network).await?;
        self.gone("/network/v2.0/ports", &of.port).await?;
        self.gone("/network/v2.0/subnets", &of.subnet).await?;
        self.gone("/network/v2.0/networks", &of.network).await?;
        self.gone("/network/v2.0/security-groups", &of.group).await
    }

    async fn image(&self) -> Result<String> {
        let images = "/image/v2/images";
        let new = json!({"name": NAME, "disk_format": "raw", "container_format": "bare"});
        let image = text(&self.post(images, new, 201).await?["id"]);
        let path = format!("{images}/{image}/file");
        // No bytes yet.
        self.call(Method::GET, &path, Value::Null, 204).await?;
        self.client.upload_bytes(&path, BYTES).await?;
        self.calls.fetch_add(1, Relaxed);
        self.same(images, &image, &["size"], json!(BYTES.len())).await?;
        let bytes = self.get(&path).await?;
        match text(&bytes).as_bytes() == BYTES {
            true => Ok(image),
            false => Err(Error::conflict(format!("GET {path} answers with other bytes than were put there"))),
        }
    }

    async fn server(&self, network: &Network, image: &str) -> Result<()> {
        let (servers, flavors) = ("/compute/v2.1/servers", "/compute/v2.1/flavors");
        let new = json!({"flavor": {"name": NAME, "ram": 64, "vcpus": 1, "disk": 1}});
        let flavor = text(&self.post(flavors, new.clone(), 200).await?["flavor"]["id"]);
        self.post(flavors, new, 409).await?;
        self.of(flavors, &flavor).await?;
        let pair = json!({"keypair": {"name": NAME, "public_key": PUBLIC_KEY}});
        self.post("/compute/v2.1/os-keypairs", pair.clone(), 200).await?;
        self.post("/compute/v2.1/os-keypairs", pair, 409).await?;
        let new = |image: &str| {
            json!({"server": {
                "name": NAME, "imageRef": image, "flavorRef": flavor, "networks": [{"uuid": network.network}],
                "key_name": NAME, "availability_zone": format!("nova:{NODE}-1"),
            }})
        };
        self.post(servers, new(NOBODY), 400).await?;
        let server = text(&self.post(servers, new(image), 202).await?["server"]["id"]);
        self.until(&server, Some("ACTIVE")).await?;
        self.of(servers, &server).await?;
        let renamed = json!({"server": {"name": format!("{NAME}-2")}});
        self.call(Method::PUT, &format!("{servers}/{server}"), renamed, 200).await?;
        self.post(&format!("{servers}/{server}/action"), json!({"os-stop": null}), 202).await?;
        self.until(&server, Some("SHUTOFF")).await?;
        self.post(&format!("{servers}/{server}/action"), json!({"os-stop": null}), 409).await?;
        self.delete(servers, &server).await?;
        self.until(&server, None).await?;
        self.call(Method::DELETE, &format!("/compute/v2.1/os-keypairs/{NAME}"), Value::Null, 202).await?;
        self.call(Method::DELETE, &format!("{flavors}/{flavor}"), Value::Null, 202).await.map(drop)
    }

    /// Waits for a server's status; none: until it is gone.
    async fn until(&self, server: &str, status: Option<&str>) -> Result<()> {
        let (path, begin) = (format!("/compute/v2.1/servers/{server}"), Instant::now());
        loop {
            let (code, seen) = self.client.status(Method::GET, &path, &Value::Null).await?;
            let is = text(&seen["server"]["status"]);
            match (code, status) {
                (404, None) => break,
                (200, Some(status)) if is == status => break,
                (200, _) if is != "ERROR" && begin.elapsed() < ACTIVE_MAX => {}
                _ => {
                    let (want, fault) = (status.unwrap_or("gone"), text(&seen["server"]["fault"]["message"]));
                    return Err(Error::conflict(format!("a server is {is} ({code}), not {want}: {fault}")));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.calls.fetch_add(1, Relaxed);
        Ok(())
    }

    /// A project that may have no network gets none.
    async fn quota(&self) -> Result<()> {
        let path = format!("/network/v2.0/quotas/{}", self.client.project);
        let before = self.get(&path).await?["quota"]["network"].clone();
        let set = |n: Value| self.call(Method::PUT, &path, json!({"quota": {"network": n}}), 200);
        set(json!(0)).await?;
        let refused = self.post("/network/v2.0/networks", json!({"network": {"name": NAME}}), 409).await;
        set(before).await?;
        refused.map(drop)
    }
}
