//! A cloud with Identity, Networking and two nodes that only have said hello.

#![allow(dead_code, reason = "each test uses its part")]

use base::node::Hello;
use fleet::Fleet;
use identity::testing::{Cloud, Person};
use serde_json::{Value, json};
use std::sync::OnceLock;
use uuid::Uuid;

pub struct Net {
    pub cloud: Cloud,
    pub fleet: Fleet,
    pub admin: Person,
}

/// The nodes of `Net`.
pub const NODES: [&str; 2] = ["n1", "n2"];

pub fn hello(name: &str, number: u8, address: &str) -> Hello {
    Hello {
        vcpus: 8,
        memory_mib: 8192,
        disk_gib: 100,
        machine: "simulated".into(),
        hypervisor_version: 9_000_000,
        physical: ["physnet1".to_string()].into(),
        ..Hello::of(name, Uuid::from_u128(u128::from(number)), address.parse().unwrap())
    }
}

impl Net {
    pub async fn new() -> Net {
        let made: OnceLock<Fleet> = OnceLock::new();
        let cloud = Cloud::with(
            |schema| network::records(fleet::records(schema)),
            |cell, _| {
                let sources = vec![network::sections::SOURCE];
                let fleet =
                    made.get_or_init(|| Fleet::new(cell.clone(), sources, vec![network::sections::observed]));
                vec![network::service(network::App { cell: cell.clone(), fleet: fleet.clone() })]
            },
        )
        .await;
        let fleet = made.into_inner().unwrap();
        for (name, number) in NODES.iter().zip(1..) {
            fleet.hello(hello(name, number, &format!("192.0.2.{number}"))).await.unwrap();
        }
        let admin = cloud.admin.clone();
        Net { cloud, fleet, admin }
    }

    /// A request under `/network/v2.0`; a body of null is none.
    pub async fn ask(&self, who: &Person, method: &str, path: &str, body: Value) -> (u16, Value) {
        let path = format!("/network/v2.0{path}");
        let (status, _, answer) = self.cloud.call(method, &path, &who.token, body).await;
        (status.as_u16(), answer)
    }

    /// What is under the one key of a good answer.
    pub async fn good(&self, who: &Person, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(who, method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        match answer.as_object() {
            Some(map) if map.len() == 1 => map.values().next().unwrap().clone(),
            _ => answer,
        }
    }

    pub async fn get(&self, who: &Person, path: &str) -> Value {
        self.good(who, "GET", path, Value::Null).await
    }

    /// Creates `one` of the collection `many`.
    pub async fn make(&self, who: &Person, many: &str, one: &str, body: Value) -> Value {
        self.good(who, "POST", &format!("/{many}"), json!({one: body})).await
    }

    pub async fn change(&self, who: &Person, path: &str, one: &str, body: Value) -> Value {
        self.good(who, "PUT", path, json!({one: body})).await
    }

    pub async fn delete(&self, who: &Person, path: &str) {
        self.good(who, "DELETE", path, Value::Null).await;
    }

    /// The status and Neutron's word of a refusal.
    pub async fn refused(&self, who: &Person, method: &str, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.ask(who, method, path, body).await;
        assert!(status >= 400, "{method} {path}: {status} {answer}");
        (status, answer["NeutronError"]["type"].as_str().unwrap_or("").to_string())
    }

    /// A network with one IPv4 subnet.
    pub async fn network(&self, who: &Person, cidr: &str) -> (String, String) {
        let network = id(&self.make(who, "networks", "network", json!({"name": cidr})).await);
        (network.clone(), self.subnet(who, &network, cidr).await)
    }

    pub async fn subnet(&self, who: &Person, network: &str, cidr: &str) -> String {
        let version = if cidr.contains(':') { 6 } else { 4 };
        let new = json!({"network_id": network, "ip_version": version, "cidr": cidr});
        id(&self.make(who, "subnets", "subnet", new).await)
    }

    /// An external network with one IPv4 subnet.
    pub async fn external(&self, cidr: &str) -> (String, String) {
        let new = json!({"name": "public", "router:external": true});
        let network = id(&self.make(&self.admin, "networks", "network", new).await);
        (network.clone(), self.subnet(&self.admin, &network, cidr).await)
    }

    /// A router from a subnet to an external network.
    pub async fn router(&self, who: &Person, external: &str, subnet: &str) -> String {
        let new = json!({"external_gateway_info": {"network_id": external}});
        let router = id(&self.make(who, "routers", "router", new).await);
        let plug = format!("/routers/{router}/add_router_interface");
        self.good(who, "PUT", &plug, json!({"subnet_id": subnet})).await;
        router
    }
}

pub fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_string()
}

/// The values of a field in a list.
pub fn all(list: &Value, field: &str) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|v| v[field].as_str().unwrap_or("").to_string()).collect()
}
