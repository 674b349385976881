//! Port forwardings: what is refused, and what nodes are told.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::Result;
use base::node::{PortForward, Section, SectionKey};
use identity::testing::Person;
use serde_json::{Value, json};
use support::{Net, id};

struct Ground {
    member: Person,
    external: String,
    subnet: String,
    router: String,
    floating: String,
    port: String,
    address: String,
}

impl Ground {
    async fn new(net: &Net) -> Ground {
        let member = net.cloud.member("member").await;
        let (external, _) = net.external("203.0.113.0/24").await;
        let (network, subnet) = net.network(&member, "10.0.0.0/24").await;
        let router = net.router(&member, &external, &subnet).await;
        let floating = json!({"floating_network_id": external});
        let floating = id(&net.make(&member, "floatingips", "floatingip", floating).await);
        let made = net.make(&member, "ports", "port", json!({"network_id": network})).await;
        let address = made["fixed_ips"][0]["ip_address"].as_str().unwrap().to_string();
        Ground { member, external, subnet, router, floating, port: id(&made), address }
    }

    fn path(&self) -> String {
        format!("/floatingips/{}/port_forwardings", self.floating)
    }

    fn body(&self, more: Value) -> Value {
        let mut body = json!({
            "protocol": "tcp", "internal_port_id": self.port, "internal_ip_address": self.address,
            "internal_port": 22, "external_port": 2222,
        });
        for (name, value) in more.as_object().unwrap() {
            match value {
                Value::Null => drop(body.as_object_mut().unwrap().remove(name)),
                value => body[name] = value.clone(),
            }
        }
        json!({"port_forwarding": body})
    }

    async fn make(&self, net: &Net, more: Value) -> Value {
        net.good(&self.member, "POST", &self.path(), self.body(more)).await
    }

    async fn refused(&self, net: &Net, more: Value) -> (u16, String) {
        net.refused(&self.member, "POST", &self.path(), self.body(more)).await
    }

    fn told(&self, net: &Net) -> Result<Vec<PortForward>> {
        let key = SectionKey::Router(self.router.parse::<base::Id<network::router::Router>>()?.uuid());
        match (network::sections::SOURCE.section)(&net.cloud.cell.read(), "n1", &key) {
            Some(Section::Router(router)) => Ok(router.forwards),
            other => panic!("no router: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_port_of_a_floating_ip_leads_inside() {
    let net = Net::new().await;
    let ground = Ground::new(&net).await;
    let made = ground.make(&net, json!({"description": "ssh"})).await;
    assert_eq!((&made["external_port"], &made["internal_port"]), (&json!(2222), &json!(22)));
    assert_eq!(net.get(&ground.member, &ground.path()).await, json!([made]));
    let floating = net.get(&ground.member, &format!("/floatingips/{}", ground.floating)).await;
    assert_eq!(floating["router_id"], json!(ground.router));
    assert_eq!(floating["port_forwardings"][0]["external_port"], 2222);
    let bind = json!({"port": {"binding:host_id": "n2", "device_owner": "compute:nova"}});
    net.good(&net.admin, "PUT", &format!("/ports/{}", ground.port), bind).await;
    let told = &ground.told(&net).unwrap()[0];
    assert_eq!((told.protocol, told.ports, told.fixed_ports), (6, (2222, 2222), (22, 22)));
    assert_eq!(told.vtep, Some("192.0.2.2".parse().unwrap()), "the node of the port");
    let one = format!("{}/{}", ground.path(), id(&made));
    let body = json!({"port_forwarding": {"external_port": 2223, "protocol": "udp"}});
    assert_eq!(net.good(&ground.member, "PUT", &one, body).await["external_port_range"], "2223:2223");
    assert_eq!(ground.told(&net).unwrap()[0].protocol, 17);
    net.delete(&ground.member, &one).await;
    assert_eq!(net.refused(&ground.member, "GET", &one, Value::Null).await.1, "PortForwardingNotFound");
    assert_eq!(ground.told(&net).unwrap(), []);
}

#[tokio::test]
async fn ranges_lead_to_ranges_or_to_one_port() {
    let net = Net::new().await;
    let ground = Ground::new(&net).await;
    let range = |outer: &str, inner: &str| json!({"external_port": null, "internal_port": null, "external_port_range": outer, "internal_port_range": inner});
    ground.make(&net, range("100:109", "200:209")).await;
    ground.make(&net, range("300:302", "80:80")).await;
    let told: Vec<_> = ground.told(&net).unwrap().iter().map(|f| (f.ports, f.fixed_ports)).collect();
    assert_eq!(told.len(), 4);
    assert!(told.contains(&((100, 109), (200, 209))) && told.contains(&((301, 301), (80, 80))));
    for (outer, inner) in [
        ("109:110", "500:501"),
        ("400:401", "209:210"),
        ("400:402", "500:501"),
        ("400:800", "500:500"),
        ("0:1", "500:501"),
        ("65535:65536", "500:501"),
        ("9:8", "500:501"),
        ("a:b", "500:501"),
    ] {
        assert_eq!(ground.refused(&net, range(outer, inner)).await.0, 400, "{outer} to {inner}");
    }
}

#[tokio::test]
async fn a_floating_ip_leads_to_a_port_or_has_forwardings() {
    let net = Net::new().await;
    let ground = Ground::new(&net).await;
    for more in [
        json!({"internal_ip_address": "10.0.0.250"}),
        json!({"protocol": "icmp"}),
        json!({"external_port": 0}),
        json!({"external_port": null}),
        json!({"surprise": 1}),
    ] {
        assert_eq!(ground.refused(&net, more.clone()).await.0, 400, "{more}");
    }
    let made = ground.make(&net, json!({})).await;
    assert_eq!(ground.refused(&net, json!({})).await.0, 400, "the same again");
    let path = format!("/floatingips/{}", ground.floating);
    let lead = json!({"floatingip": {"port_id": ground.port}});
    let in_use = (409, "FipInUseByPortForwarding".to_string());
    assert_eq!(net.refused(&ground.member, "PUT", &path, lead.clone()).await, in_use);
    assert_eq!(net.refused(&ground.member, "DELETE", &path, Value::Null).await, in_use);
    let second = json!({"floatingip": {"floating_network_id": ground.external, "port_id": ground.port}});
    let refused = net.refused(&ground.member, "POST", "/floatingips", second).await;
    assert_eq!(refused, (400, "PortHasPortForwarding".into()));
    let unplug = format!("/routers/{}/remove_router_interface", ground.router);
    let body = json!({"subnet_id": ground.subnet});
    assert_eq!(net.refused(&ground.member, "PUT", &unplug, body).await.0, 409);
    let gateway = json!({"router": {"external_gateway_info": {}}});
    assert_eq!(
        net.refused(&ground.member, "PUT", &format!("/routers/{}", ground.router), gateway).await.0,
        409
    );
    net.delete(&ground.member, &format!("{}/{}", ground.path(), id(&made))).await;
    net.good(&ground.member, "PUT", &path, lead).await;
    assert_eq!(ground.refused(&net, json!({})).await, (409, "FloatingIPPortAlreadyAssociated".into()));
}

#[tokio::test]
async fn forwardings_go_with_their_port_and_its_address() {
    let net = Net::new().await;
    let ground = Ground::new(&net).await;
    ground.make(&net, json!({})).await;
    let moved = json!({"port": {"fixed_ips": [{"ip_address": "10.0.0.77"}]}});
    net.good(&ground.member, "PUT", &format!("/ports/{}", ground.port), moved).await;
    assert_eq!(net.get(&ground.member, &ground.path()).await, json!([]));
    ground.make(&net, json!({"internal_ip_address": "10.0.0.77"})).await;
    net.delete(&ground.member, &format!("/ports/{}", ground.port)).await;
    assert_eq!(net.get(&ground.member, &ground.path()).await, json!([]));
    let stranger = net.cloud.member("stranger").await;
    assert_eq!(net.refused(&stranger, "GET", &ground.path(), Value::Null).await.0, 404);
}
