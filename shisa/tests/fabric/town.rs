//! What all checks stand on: a cloud of three nodes with two networks behind one router, and a few guests.
//!
//! `blue` has a guest on each host, `green` one on the second and one on the third. Their ports let echo in, by ICMP,
//! TCP and UDP. `outside` is the external network, flat, with the provider's router as its gateway.

use crate::Outcome;
use crate::cloud::{Api, Plane, text};
use crate::guest::{ECHO, Guest, Identity};
use crate::hosts::{HOSTS, Machines, OUTSIDE, PROVIDER, name, until};
use crate::space::Space;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// The way of a change from the API to the kernel, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);
const JOIN_MAX: Duration = Duration::from_secs(60);

pub struct Town {
    pub machines: Machines,
    pub plane: Plane,
    pub api: Api,
    pub image: String,
    pub outside: String,
    pub blue: Net,
    pub green: Net,
    pub router: String,
    /// The router's address outside.
    pub gateway: String,
    /// The security group of the guests here.
    pub open: String,
    pub blues: Vec<Guest>,
    pub greens: Vec<Guest>,
}

/// A network with its first subnet.
#[derive(Clone)]
pub struct Net {
    pub id: String,
    pub subnet: String,
    pub mtu: u64,
}

impl Town {
    pub fn build(work: &Path) -> Outcome<Town> {
        let mut machines = Machines::new(work);
        let mut plane = Plane::new(work);
        plane.start()?;
        plane.make_token(HOSTS)?;
        for (n, host) in machines.hosts.iter_mut().enumerate() {
            host.start(n, Some(&plane.token));
        }
        let api = Api::login(&plane.admin_password(), "admin")?;
        let all = |api: &Api| match nodes_up(api)?.len() {
            HOSTS => Ok(()),
            n => Err(format!(
                "{n} of {HOSTS} nodes are up; {:?}",
                machines.hosts.iter().map(|h| h.said()).collect::<Vec<_>>()
            )),
        };
        until(JOIN_MAX, || all(&api))?;
        unlimited(&api, &api.project)?;
        let image = until(SOON, || {
            let image = api.get("/image/v2/images?name=guest")?["images"][0].take();
            if image["status"] == "active" {
                Ok(text(&image["id"]))
            } else {
                Err(format!("no image: {image}"))
            }
        })?;
        let outside = outside(&api)?;
        let (blue, green) = (net(&api, "blue", "10.1.0.0/24")?, net(&api, "green", "10.2.0.0/24")?);
        let (router, gateway) = router(&api, "main", &outside, &[&blue, &green], json!({}))?;
        let open = open(&api)?;
        let (blues, greens) = (Vec::new(), Vec::new());
        let mut town =
            Town { machines, plane, api, image, outside, blue, green, router, gateway, open, blues, greens };
        for host in 0..HOSTS {
            town.blues.push(town.guest(&format!("blue{}", host + 1), host, &town.blue, json!({}))?);
        }
        for host in 1..HOSTS {
            town.greens.push(town.guest(&format!("green{}", host + 1), host, &town.green, json!({}))?);
        }
        Ok(town)
    }

    /// A guest of the group `open` with the addresses of its port, unless `port` says otherwise.
    pub fn guest(&self, name: &str, host: usize, net: &Net, port: Value) -> Outcome<Guest> {
        self.guest_of(&self.api, name, host, net, with(json!({"security_groups": [self.open]}), port))
    }

    pub fn guest_of(&self, api: &Api, name: &str, host: usize, net: &Net, port: Value) -> Outcome<Guest> {
        let guest = self.bare_guest_of(api, name, host, net, port)?;
        for address in &guest.addresses {
            dress(&guest.space, *address, net.gateway(api)?);
        }
        Ok(guest)
    }

    /// A guest without addresses.
    pub fn bare_guest_of(
        &self,
        api: &Api,
        guest: &str,
        host: usize,
        net: &Net,
        port: Value,
    ) -> Outcome<Guest> {
        let port = api.make("port", with(json!({"network_id": net.id, "name": guest}), port))?;
        let id = text(&port["id"]);
        let server = json!({"server": {
            "name": guest, "imageRef": self.image, "flavorRef": "1", "networks": [{"port": id}],
            "availability_zone": format!("nova:{}", name(host)),
        }});
        let server = text(&api.call("POST", "/compute/v2.1/servers", server)?["server"]["id"]);
        until(SOON, || {
            let now = api.get(&format!("/compute/v2.1/servers/{server}"))?;
            let port = api.get(&format!("/v2.0/ports/{id}"))?;
            match (now["server"]["status"].as_str(), port["port"]["status"].as_str()) {
                (Some("ACTIVE"), Some("ACTIVE")) => Ok(()),
                (one, two) => {
                    Err(format!("{guest} is {one:?}, its port {two:?}: {}", now["server"]["fault"]))
                }
            }
        })?;
        let fixed = port["fixed_ips"].as_array().into_iter().flatten();
        let identity = Identity {
            name: guest.to_string(),
            server,
            port: id,
            mac: text(&port["mac_address"]),
            host,
            addresses: fixed.filter_map(|f| text(&f["ip_address"]).parse().ok()).collect(),
            mtu: net.mtu,
        };
        let place = self.place(host, &net.id)?;
        let guest = Guest::plug(identity, &place)?;
        forwarding(&place, &guest)?;
        Ok(guest)
    }

    /// A network's namespace on a host.
    pub fn place(&self, host: usize, network: &str) -> Outcome<Space> {
        self.namespace(host, &format!("-net-{network}"))
    }

    /// The namespace of the router of all, on a host.
    pub fn router_place(&self, host: usize) -> Outcome<Space> {
        self.namespace(host, &format!("-router-{}", self.router))
    }

    fn namespace(&self, host: usize, end: &str) -> Outcome<Space> {
        let host = &self.machines.hosts[host].space;
        let names = host.run("ls /run/netns")?;
        let found = names.split_whitespace().find(|name| name.ends_with(end));
        host.named(found.ok_or_else(|| format!("no namespace {end} in {names}"))?)
    }

    /// Ends a server, and the guest that played it.
    pub fn remove(&self, guest: Guest) -> Outcome<()> {
        self.api.delete(&format!("/compute/v2.1/servers/{}", guest.server))?;
        self.api.delete(&format!("/v2.0/ports/{}", guest.port)).or(Ok(()))
    }

    /// A floating address of a guest; its id and itself.
    pub fn float(&self, guest: &Guest) -> Outcome<(String, String)> {
        let body = json!({"floating_network_id": self.outside, "port_id": guest.port});
        let made = self.api.make("floatingip", body)?;
        Ok((text(&made["id"]), text(&made["floating_ip_address"])))
    }

    pub fn unfloat(&self, id: &str) -> Outcome<()> {
        self.api.delete(&format!("/v2.0/floatingips/{id}"))
    }

    /// The administrator in a project of its own.
    pub fn project(&self, name: &str) -> Outcome<Api> {
        let body = json!({"project": {"name": name, "domain_id": "default"}});
        let project = text(&self.api.call("POST", "/identity/v3/projects", body)?["project"]["id"]);
        let role = text(&self.api.get("/identity/v3/roles?name=admin")?["roles"][0]["id"]);
        let grant = format!("/identity/v3/projects/{project}/users/{}/roles/{role}", self.api.user);
        self.api.put(&grant, Value::Null)?;
        unlimited(&self.api, &project)?;
        Api::login(&self.plane.admin_password(), name)
    }
}

impl Net {
    pub fn gateway(&self, api: &Api) -> Outcome<Option<IpAddr>> {
        let subnet = api.get(&format!("/v2.0/subnets/{}", self.subnet))?;
        Ok(text(&subnet["subnet"]["gateway_ip"]).parse().ok())
    }
}

pub fn nodes_up(api: &Api) -> Outcome<Vec<String>> {
    let answer = api.get("/compute/v2.1/os-hypervisors")?;
    let list = answer["hypervisors"].as_array().into_iter().flatten();
    Ok(list.filter(|h| h["state"] == "up").map(|h| text(&h["hypervisor_hostname"])).collect())
}

fn unlimited(api: &Api, project: &str) -> Outcome<()> {
    let none = json!({"quota_set": {"instances": -1, "cores": -1, "ram": -1}});
    api.put(&format!("/compute/v2.1/os-quota-sets/{project}"), none).map(drop)
}

fn outside(api: &Api) -> Outcome {
    let body = json!({
        "name": "outside", "router:external": true, "provider:network_type": "flat",
        "provider:physical_network": "outside",
    });
    let id = text(&api.make("network", body)?["id"]);
    let pool = json!([{"start": format!("{OUTSIDE}.50"), "end": format!("{OUTSIDE}.200")}]);
    let subnet = json!({
        "network_id": id, "ip_version": 4, "cidr": format!("{OUTSIDE}.0/24"), "gateway_ip": PROVIDER,
        "allocation_pools": pool, "enable_dhcp": false,
    });
    api.make("subnet", subnet)?;
    Ok(id)
}

pub fn net(api: &Api, name: &str, cidr: &str) -> Outcome<Net> {
    net_with(
        api,
        json!({"name": name}),
        json!({"cidr": cidr, "ip_version": if cidr.contains(':') { 6 } else { 4 }}),
    )
}

pub fn net_with(api: &Api, network: Value, subnet: Value) -> Outcome<Net> {
    let network = api.make("network", network)?;
    let id = text(&network["id"]);
    let subnet = api.make("subnet", with(json!({"network_id": id}), subnet))?;
    Ok(Net { id, subnet: text(&subnet["id"]), mtu: network["mtu"].as_u64().unwrap_or(0) })
}

/// A router's id and its address outside.
pub fn router(api: &Api, name: &str, outside: &str, nets: &[&Net], more: Value) -> Outcome<(String, String)> {
    let body = json!({"name": name, "external_gateway_info": {"network_id": outside}});
    let made = api.make("router", with(body, more))?;
    let id = text(&made["id"]);
    for net in nets {
        api.put(&format!("/v2.0/routers/{id}/add_router_interface"), json!({"subnet_id": net.subnet}))?;
    }
    Ok((id, text(&made["external_gateway_info"]["external_fixed_ips"][0]["ip_address"])))
}

/// A group that lets echo in.
pub fn open(api: &Api) -> Outcome {
    let group = text(&api.make("security_group", json!({"name": "open"}))?["id"]);
    rule(api, &group, json!({"protocol": "icmp"}))?;
    rule(api, &group, json!({"protocol": "tcp", "port_range_min": ECHO, "port_range_max": ECHO}))?;
    rule(api, &group, json!({"protocol": "udp", "port_range_min": ECHO, "port_range_max": ECHO}))?;
    rule(api, &group, json!({"protocol": "ipv6-icmp", "ethertype": "IPv6"}))?;
    Ok(group)
}

/// A rule of a group, inward and of IPv4 unless it says otherwise.
pub fn rule(api: &Api, group: &str, more: Value) -> Outcome {
    let body = json!({"security_group_id": group, "direction": "ingress", "ethertype": "IPv4"});
    Ok(text(&api.make("security_group_rule", with(body, more))?["id"]))
}

/// One object over another.
pub fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

/// Gives a guest an address, and the way by its gateway.
pub fn dress(space: &Space, address: IpAddr, gateway: Option<IpAddr>) {
    let (length, more) = if address.is_ipv4() { (24, "") } else { (64, "nodad") };
    space.ip(&format!("addr add {address}/{length} dev eth0 {more}"));
    if let Some(gateway) = gateway {
        space.ip(&format!("route replace default via {gateway} dev eth0"));
    }
}

/// A bridge takes frames of a port some time after its carrier.
fn forwarding(place: &Space, guest: &Guest) -> Outcome<()> {
    let tap = format!("tap{}", &guest.port.replace('-', "")[..11]);
    until(SOON, || match place.run(&format!("ip -d link show {tap}"))?.contains("state forwarding") {
        true => Ok(()),
        false => Err(format!("{tap} does not forward")),
    })
}
