//! Where addresses come from: pools, default pools, service types, automatic topologies, and how many are left.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use support::{Net, id};

#[tokio::test]
async fn prefixes_of_a_pool_come_and_go() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let new = json!({"name": "p", "prefixes": ["10.0.0.0/16"], "default_prefixlen": 24, "min_prefixlen": 16});
    let pool = id(&net.make(&member, "subnetpools", "subnetpool", new).await);
    let (add, remove) =
        (format!("/subnetpools/{pool}/add_prefixes"), format!("/subnetpools/{pool}/remove_prefixes"));
    let one = |prefix: &str| json!({"prefixes": [prefix]});
    assert_eq!(net.good(&member, "PUT", &add, one("10.1.0.0/16")).await, json!(["10.0.0.0/15"]));
    let network = id(&net.make(&member, "networks", "network", json!({})).await);
    let subnet = json!({"network_id": network, "ip_version": 4, "subnetpool_id": pool});
    let subnet = net.make(&member, "subnets", "subnet", subnet).await;
    assert_eq!(subnet["cidr"], "10.0.0.0/24");
    assert_eq!(
        net.refused(&member, "PUT", &remove, one("10.0.0.0/16")).await.1,
        "IllegalSubnetPoolPrefixUpdate"
    );
    assert_eq!(net.refused(&member, "PUT", &add, one("2001:db8::/48")).await.1, "PrefixVersionMismatch");
    assert_eq!(net.good(&member, "PUT", &remove, one("10.1.0.0/16")).await, json!(["10.0.0.0/16"]));
    let stranger = net.cloud.member("stranger").await;
    assert_eq!(net.refused(&stranger, "PUT", &add, one("10.2.0.0/16")).await.0, 404);
}

#[tokio::test]
async fn a_subnet_serves_the_owners_that_it_names() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let network = id(&net.make(&member, "networks", "network", json!({})).await);
    let new = |types: Value, cidr: &str| json!({"network_id": network, "ip_version": 4, "cidr": cidr, "service_types": types});
    let bad = json!({"subnet": new(json!(["anything"]), "10.9.0.0/24")});
    assert_eq!(net.refused(&member, "POST", "/subnets", bad).await, (400, "InvalidSubnetServiceType".into()));
    let guests =
        id(&net.make(&member, "subnets", "subnet", new(json!(["compute:nova"]), "10.0.0.0/24")).await);
    let port = |owner: &str| json!({"network_id": network, "device_owner": owner});
    let refused = net.refused(&member, "POST", "/ports", json!({"port": port("")})).await;
    assert_eq!(refused, (409, "IpAddressGenerationFailureNoMatchingSubnet".into()));
    let explicit = json!({"port": {"network_id": network, "fixed_ips": [{"subnet_id": guests}]}});
    assert_eq!(net.refused(&member, "POST", "/ports", explicit).await.0, 400);
    let rest = id(&net.make(&member, "subnets", "subnet", new(json!([]), "10.1.0.0/24")).await);
    let other = net.make(&member, "ports", "port", port("")).await;
    assert_eq!(other["fixed_ips"][0]["subnet_id"], json!(rest));
    let guest = net.make(&member, "ports", "port", port("compute:nova")).await;
    assert!([&guests, &rest].iter().any(|s| guest["fixed_ips"][0]["subnet_id"] == json!(s)));
}

#[tokio::test]
async fn a_project_gets_its_topology_by_asking() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let path = format!("/auto-allocated-topology/{}", member.project);
    let dry = format!("{path}?fields=dry-run");
    assert_eq!(net.refused(&member, "GET", &dry, Value::Null).await, (409, "AutoAllocationFailure".into()));
    let (external, _) = net.external("203.0.113.0/24").await;
    net.change(&net.admin, &format!("/networks/{external}"), "network", json!({"is_default": true})).await;
    let pool = |prefix: &str| json!({"name": "p", "prefixes": [prefix], "is_default": true, "shared": true, "default_prefixlen": 24});
    net.make(&net.admin, "subnetpools", "subnetpool", pool("10.0.0.0/8")).await;
    let second = json!({"subnetpool": pool("192.168.0.0/16")});
    assert_eq!(net.refused(&net.admin, "POST", "/subnetpools", second).await.0, 400, "one default");
    assert_eq!(net.get(&member, &dry).await["id"], "dry-run=pass");
    assert_eq!(net.get(&member, "/networks?project_id=x").await, json!([]), "nothing was made");
    let made = net.get(&member, &path).await;
    assert_eq!(net.get(&member, &path).await, made, "once");
    let network = net.get(&member, &format!("/networks/{}", id(&made))).await;
    assert_eq!(network["project_id"], json!(member.project));
    let routers = net.get(&member, "/routers").await;
    assert_eq!(routers[0]["external_gateway_info"]["network_id"], json!(external));
    let by_default = json!({"network_id": id(&made), "ip_version": 4, "use_default_subnetpool": true});
    net.make(&member, "subnets", "subnet", by_default).await;
    let stranger = net.cloud.member("stranger").await;
    assert_eq!(net.refused(&stranger, "GET", &path, Value::Null).await.0, 403);
    net.delete(&member, &path).await;
    assert_eq!(
        (net.get(&member, "/routers").await, net.get(&member, "/ports").await),
        (json!([]), json!([]))
    );
    let policies = net.get(&net.admin, &format!("/rbac-policies?object_id={external}")).await;
    let rbac = format!("/rbac-policies/{}", id(&policies[0]));
    assert_eq!(
        net.refused(&net.admin, "DELETE", &rbac, Value::Null).await.0,
        409,
        "the default is everyone's"
    );
}

#[tokio::test]
async fn taken_addresses_are_counted() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (network, _) = net.network(&member, "10.0.0.0/29").await;
    net.subnet(&member, &network, "2001:db8::/64").await;
    net.make(&member, "ports", "port", json!({"network_id": network})).await;
    let all = net.get(&net.admin, &format!("/network-ip-availabilities?network_id={network}")).await;
    assert_eq!(
        (&all[0]["used_ips"], &all[0]["subnet_ip_availability"][0]["used_ips"]),
        (&json!(2), &json!(1))
    );
    let four =
        net.get(&net.admin, &format!("/network-ip-availabilities?network_id={network}&ip_version=4")).await;
    assert_eq!((&four[0]["total_ips"], &four[0]["used_ips"]), (&json!(5), &json!(1)));
    let one = net.get(&net.admin, &format!("/network-ip-availabilities/{network}")).await;
    assert_eq!(one["network_id"], json!(network));
    assert_eq!(
        net.refused(&net.admin, "GET", "/network-ip-availabilities?color=red", Value::Null).await.0,
        400
    );
    assert_eq!(net.refused(&member, "GET", "/network-ip-availabilities", Value::Null).await.0, 403);
}

#[tokio::test]
async fn floating_ip_pools_are_the_external_subnets() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (external, first) = net.external("203.0.113.0/24").await;
    let second = net.subnet(&net.admin, &external, "198.51.100.0/24").await;
    net.network(&member, "10.0.0.0/24").await;
    let pools = net.get(&member, "/floatingip_pools").await;
    let mut ids = support::all(&pools, "subnet_id");
    ids.sort();
    let mut expect = vec![first, second.clone()];
    expect.sort();
    assert_eq!(ids, expect);
    let new = json!({"floating_network_id": external, "subnet_id": second});
    let made = net.make(&member, "floatingips", "floatingip", new).await;
    assert!(made["floating_ip_address"].as_str().unwrap().starts_with("198.51.100."), "{made}");
}

#[tokio::test]
async fn provider_networks_are_vxlan_or_flat() {
    let net = Net::new().await;
    let flat = |name: &str| json!({"network": {"provider:network_type": "flat", "provider:physical_network": name, "mtu": 1500}});
    let made = net.good(&net.admin, "POST", "/networks", flat("physnet1")).await;
    assert_eq!((&made["provider:segmentation_id"], &made["mtu"]), (&Value::Null, &json!(1500)));
    let again = net.refused(&net.admin, "POST", "/networks", flat("physnet1")).await;
    assert_eq!(again, (409, "FlatNetworkInUse".into()));
    assert_eq!(net.refused(&net.admin, "POST", "/networks", flat("physnet2")).await.0, 400);
    for body in [
        json!({"mtu": 1451}),
        json!({"mtu": 67}),
        json!({"mtu": -1}),
        json!({"provider:network_type": "vlan", "provider:segmentation_id": 5}),
        json!({"provider:network_type": "vxlan", "provider:segmentation_id": 1 << 24}),
        json!({"provider:network_type": "flat"}),
    ] {
        let refused = net.refused(&net.admin, "POST", "/networks", json!({"network": body})).await;
        assert_eq!(refused, (400, "InvalidInput".into()), "{body}");
    }
    let vxlan = json!({"provider:network_type": "vxlan", "provider:segmentation_id": 77, "mtu": 1400});
    let made = net.make(&net.admin, "networks", "network", vxlan.clone()).await;
    assert_eq!((&made["provider:segmentation_id"], &made["mtu"]), (&json!(77), &json!(1400)));
    let again = net.refused(&net.admin, "POST", "/networks", json!({"network": vxlan})).await;
    assert_eq!(again, (409, "TunnelIdInUse".into()));
    let member = net.cloud.member("member").await;
    assert_eq!(net.refused(&member, "POST", "/networks", flat("physnet1")).await.0, 403);
    let seen = net.make(&member, "networks", "network", json!({})).await;
    assert!(seen.get("provider:network_type").is_none());
}
