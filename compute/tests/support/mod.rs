//! A cloud with every service and two nodes that only have said hello.

#![allow(dead_code, reason = "each test uses its part")]

use base::node::Hello;
use fleet::Fleet;
use identity::testing::{Cloud, Person};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use uuid::Uuid;

pub struct Whole {
    pub cloud: Cloud,
    pub fleet: Fleet,
}

/// What a node says of itself.
pub fn hello(name: &str, memory_mib: u64) -> Hello {
    let id = Uuid::from_u128(name.bytes().fold(7, |n, b| n * 31 + u128::from(b)));
    Hello {
        vcpus: 8,
        memory_mib,
        disk_gib: 100,
        machine: "simulated".into(),
        hypervisor_version: 9_000_000,
        ..Hello::of(name, id, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

impl Whole {
    pub async fn new() -> Whole {
        let made: OnceLock<Fleet> = OnceLock::new();
        let records = |schema: store::Schema| {
            let schema = schema.formats(1, compute::maintenance::FORMAT);
            compute::records(storage::records(network::records(fleet::records(schema))))
        };
        let cloud = Cloud::with(records, |cell, dir| {
            let fleet = made.get_or_init(|| {
                let sources = vec![network::sections::SOURCE, compute::sections::SOURCE];
                Fleet::new(
                    cell.clone(),
                    sources,
                    vec![network::sections::observed, compute::sections::observed],
                )
            });
            let console: compute::Console = Arc::new(|_, _, _| Box::pin(async { Ok("a console\n".into()) }));
            let compute = compute::App { cell: cell.clone(), fleet: fleet.clone(), console };
            let storage = storage::App::new(cell.clone(), storage::Settings::new(dir.join("storage")));
            vec![
                network::service(network::App { cell: cell.clone(), fleet: fleet.clone() }),
                storage::service(storage),
                compute::service(compute.clone()),
                compute::placement_service(compute.clone()),
                compute::maintenance::rest::service(compute),
            ]
        })
        .await;
        let fleet = made.into_inner().unwrap();
        for name in ["n1", "n2"] {
            fleet.hello(hello(name, 8192)).await.unwrap();
        }
        Whole { cloud, fleet }
    }

    pub async fn ask(&self, who: &Person, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, _, answer) = self.cloud.call(method, path, &who.token, body).await;
        (status.as_u16(), answer)
    }

    /// As `ask` of Compute in a microversion.
    pub async fn at(
        &self,
        who: &Person,
        version: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> (u16, Value) {
        let value = format!("compute {version}");
        let headers = [("openstack-api-version", value.as_str()), ("content-type", "application/json")];
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (status, _, answer) = self.cloud.send(method, path, &who.token, &headers, bytes).await;
        (status.as_u16(), answer)
    }

    /// Creates, and gives what is under the answer's one key.
    pub async fn make(&self, who: &Person, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(who, "POST", path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        match answer.as_object() {
            Some(map) if map.len() == 1 => map.values().next().unwrap().clone(),
            _ => answer,
        }
    }

    /// An active public image, one flavor, and for `who` a network with a subnet.
    pub async fn ground(&self, who: &Person) -> Ground {
        let admin = self.cloud.admin.clone();
        let new =
            json!({"name": "i", "disk_format": "raw", "container_format": "bare", "visibility": "public"});
        let image = id(&self.make(&admin, "/image/v2/images", new).await);
        let path = format!("/image/v2/images/{image}/file");
        let octets = [("content-type", "application/octet-stream")];
        assert_eq!(self.cloud.send("PUT", &path, &admin.token, &octets, vec![0; 512]).await.0, 204);
        let new = json!({"flavor": {"name": "f", "ram": 512, "vcpus": 1, "disk": 1}});
        let flavor = id(&self.make(&admin, "/compute/v2.1/flavors", new).await);
        let network = id(&self.make(who, "/network/v2.0/networks", json!({"network": {"name": "n"}})).await);
        let new = json!({"subnet": {"network_id": network, "ip_version": 4, "cidr": "10.1.0.0/24"}});
        let subnet = id(&self.make(who, "/network/v2.0/subnets", new).await);
        Ground { image, flavor, network, subnet }
    }
}

pub struct Ground {
    pub image: String,
    pub flavor: String,
    pub network: String,
    pub subnet: String,
}

impl Ground {
    pub fn server(&self, name: &str) -> Value {
        json!({"server": {"name": name, "imageRef": self.image, "flavorRef": self.flavor,
            "networks": [{"uuid": self.network}]}})
    }
}

pub fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_string()
}
