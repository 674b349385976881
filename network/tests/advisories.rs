//! What published advisories of Networking keep from happening here; the numbers name them. More of them stand in
//! `compute/tests/service.rs`, in `fabric::plan` for packets, and in `node::metadata`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::Id;
use base::node::{Direction, Remote, RuleSet, Section, SectionKey};
use identity::testing::Person;
use network::port::Port;
use serde_json::{Value, json};
use support::{Net, all, id};

/// The rules that the node of a port is told, by the hash in the port's section.
fn told(net: &Net, port: &str) -> RuleSet {
    let state = net.cloud.cell.read();
    let port = port.parse::<Id<Port>>().unwrap().uuid();
    let Some(Section::Port(port)) =
        (network::sections::SOURCE.section)(&state, "n1", &SectionKey::Port(port))
    else {
        panic!("no section of the port");
    };
    let key = SectionKey::Rules(port.rules.unwrap());
    let Some(Section::Rules(rules)) = (network::sections::SOURCE.section)(&state, "n1", &key) else {
        panic!("no section of the rules");
    };
    rules
}

/// A port on the node n1 with one group of its own.
async fn bound(net: &Net, who: &Person) -> (String, String) {
    let (network, _) = net.network(who, "10.0.0.0/24").await;
    let group = id(&net.make(who, "security-groups", "security_group", json!({"name": "g"})).await);
    let new = json!({"network_id": network, "security_groups": [group], "device_owner": "compute:nova"});
    let port = id(&net.make(who, "ports", "port", new).await);
    net.change(&net.admin, &format!("/ports/{port}"), "port", json!({"binding:host_id": "n1"})).await;
    (port, group)
}

async fn allow(net: &Net, who: &Person, group: &str, more: Value) -> String {
    let mut rule = json!({"security_group_id": group, "direction": "ingress"});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    id(&net.make(who, "security-group-rules", "security_group_rule", rule).await)
}

/// CVE-2012-2654: a protocol in capitals was no protocol, and the rule let everything in.
#[tokio::test]
async fn ossa_2012_007_a_protocol_in_capitals_is_that_protocol() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (port, group) = bound(&net, &member).await;
    for (n, protocol) in ["TCP", "Udp", "ICMP", "6", "IPv6-ICMP"].into_iter().enumerate() {
        let family = if protocol.starts_with("IPv6") { "IPv6" } else { "IPv4" };
        let cidr = if family == "IPv6" { format!("2001:db8:{n}::/48") } else { format!("10.{n}.0.0/16") };
        let more = json!({"protocol": protocol, "ethertype": family, "remote_ip_prefix": cidr});
        allow(&net, &member, &group, more).await;
    }
    let ingress = told(&net, &port).rules.into_iter().filter(|r| r.direction == Direction::Ingress);
    let mut numbers: Vec<u8> =
        ingress.map(|r| r.protocol.expect("a rule that names one is of one")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 6, 6, 17, 58]);
}

/// CVE-2015-7713: changed groups were not applied to running servers.
#[tokio::test]
async fn ossa_2015_021_a_changed_rule_or_group_reaches_ports_that_run() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (port, group) = bound(&net, &member).await;
    let inward = |rules: &RuleSet| rules.rules.iter().filter(|r| r.direction == Direction::Ingress).count();
    assert_eq!(inward(&told(&net, &port)), 0);
    let rule = allow(&net, &member, &group, json!({"protocol": "tcp"})).await;
    assert_eq!(inward(&told(&net, &port)), 1);
    net.delete(&member, &format!("/security-group-rules/{rule}")).await;
    assert_eq!(inward(&told(&net, &port)), 0);
    let addresses = json!({"addresses": ["10.9.0.0/16", "10.8.0.1"]});
    let named = id(&net.make(&member, "address-groups", "address_group", addresses).await);
    allow(&net, &member, &group, json!({"remote_address_group_id": named})).await;
    assert_eq!(inward(&told(&net, &port)), 2);
    let remove = format!("/address-groups/{named}/remove_addresses");
    net.good(&member, "PUT", &remove, json!({"addresses": ["10.9.0.0/16"]})).await;
    assert_eq!(inward(&told(&net, &port)), 1);
    net.change(&member, &format!("/ports/{port}"), "port", json!({"security_groups": []})).await;
    assert_eq!(told(&net, &port).rules, [], "no group lets nothing in or out");
}

/// CVE-2014-0187, CVE-2019-10876: one rule kept others from being applied.
#[tokio::test]
async fn ossa_2014_014_and_2019_002_overlapping_rules_all_stay() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (port, group) = bound(&net, &member).await;
    let other = id(&net.make(&member, "security-groups", "security_group", json!({"name": "h"})).await);
    let both = json!({"security_groups": [group, other]});
    net.change(&member, &format!("/ports/{port}"), "port", both).await;
    for (group, min, max) in [(&group, 1, 100), (&other, 50, 150), (&group, 60, 61), (&other, 1, 65535)] {
        let more = json!({"protocol": "tcp", "port_range_min": min, "port_range_max": max});
        allow(&net, &member, group, more).await;
    }
    // Host bits in a prefix are no reason to lose the rule.
    allow(&net, &member, &group, json!({"remote_ip_prefix": "10.1.2.3/8"})).await;
    let rules = told(&net, &port).rules;
    let ports: Vec<_> = rules.iter().filter_map(|r| r.min.zip(r.max)).collect();
    assert_eq!(ports, [(1, 100), (1, 65535), (50, 150), (60, 61)]);
    assert!(rules.iter().any(|r| r.remote == Remote::Cidr("10.0.0.0/8".parse().unwrap())));
}

/// CVE-2014-0056: a port of one's own, handed to another's router, plugs one's network into it.
#[tokio::test]
async fn ossa_2014_008_a_router_interface_is_not_handed_to_another_router() {
    let net = Net::new().await;
    let (victim, thief) = (net.cloud.member("victim").await, net.cloud.member("thief").await);
    let target = id(&net.make(&victim, "routers", "router", json!({})).await);
    let (_, subnet) = net.network(&thief, "10.0.0.0/24").await;
    let own = id(&net.make(&thief, "routers", "router", json!({})).await);
    let plug = format!("/routers/{own}/add_router_interface");
    let plugged = net.good(&thief, "PUT", &plug, json!({"subnet_id": subnet})).await;
    let path = format!("/ports/{}", plugged["port_id"].as_str().unwrap());
    for body in [json!({"device_id": target}), json!({"device_id": ""}), json!({"device_owner": ""})] {
        for who in [&thief, &net.admin] {
            let refused = net.refused(who, "PUT", &path, json!({"port": body})).await;
            assert_eq!(refused, (409, "ServicePortInUse".into()), "{body}");
        }
    }
    assert_eq!(net.get(&thief, &path).await["device_id"], json!(own));
}

/// The same for servers: a port that has a node, given another device, leaves the node.
#[tokio::test]
async fn ossa_2014_008_a_bound_port_is_not_handed_to_another_server() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (port, _) = bound(&net, &member).await;
    let path = format!("/ports/{port}");
    let foreign = "11111111-2222-3333-4444-555555555555";
    net.change(&member, &path, "port", json!({"device_id": foreign})).await;
    assert_eq!(net.get(&net.admin, &path).await["binding:host_id"], "");
    let keys = (network::sections::SOURCE.keys)(&net.cloud.cell.read(), "n1");
    assert!(!keys.contains(&SectionKey::Port(port.parse::<Id<Port>>().unwrap().uuid())));
}

/// CVE-2014-6414: who may not set an attribute reset it by writing its default.
#[tokio::test]
async fn ossa_2014_031_what_administrators_set_is_not_reset_by_others() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let new =
        json!({"project_id": member.project, "shared": true, "router:external": true, "is_default": true});
    let network = id(&net.make(&net.admin, "networks", "network", new).await);
    let path = format!("/networks/{network}");
    for attribute in ["shared", "router:external", "is_default"] {
        for value in [false, true] {
            let refused = net.refused(&member, "PUT", &path, json!({"network": {attribute: value}})).await;
            assert_eq!(refused.0, 403, "{attribute}");
        }
    }
    let pool =
        json!({"project_id": member.project, "prefixes": ["10.0.0.0/8"], "shared": true, "is_default": true});
    let pool = id(&net.make(&net.admin, "subnetpools", "subnetpool", pool).await);
    for attribute in ["shared", "is_default"] {
        let body = json!({"subnetpool": {attribute: false}});
        assert_eq!(net.refused(&member, "PUT", &format!("/subnetpools/{pool}"), body).await.0, 403);
    }
    net.change(&member, &path, "network", json!({"name": "mine"})).await;
    let after = net.get(&net.admin, &path).await;
    assert_eq!([&after["shared"], &after["router:external"], &after["is_default"]], [&json!(true); 3]);
    let router = json!({"project_id": member.project, "distributed": false});
    let router = id(&net.make(&net.admin, "routers", "router", router).await);
    let body = json!({"router": {"distributed": true}});
    assert_eq!(net.refused(&member, "PUT", &format!("/routers/{router}"), body).await.0, 403);
    net.change(&member, &format!("/routers/{router}"), "router", json!({"name": "mine"})).await;
    assert_eq!(net.get(&net.admin, &format!("/routers/{router}")).await["distributed"], false);
}

/// CVE-2014-7821, CVE-2021-40085: text that ends up in a resolver's or DHCP server's settings.
#[tokio::test]
async fn ossa_2014_039_and_2021_005_settings_of_guests_are_values_not_text() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (network, subnet) = net.network(&member, "10.0.0.0/24").await;
    for bad in ["ns.example.org", "8.8.8.8\nserver=/x/6.6.6.6", "8.8.8.8 ", "", "8.8.8.8/32", "300.1.1.1"] {
        let body = json!({"subnet": {"dns_nameservers": [bad]}});
        assert_eq!(net.refused(&member, "PUT", &format!("/subnets/{subnet}"), body).await.0, 400, "{bad:?}");
        let route = json!({"subnet": {"host_routes": [{"destination": bad, "nexthop": bad}]}});
        assert_eq!(net.refused(&member, "PUT", &format!("/subnets/{subnet}"), route).await.0, 400, "{bad:?}");
    }
    for (name, value) in [
        ("bootfile-name", "a\nb"),
        ("bootfile-name", "a\rb"),
        ("bootfile-name", "a\u{85}b"),
        ("bootfile-name\n", "a\u{0}b"),
        ("a\nb", "c"),
        ("", "c"),
    ] {
        let options = json!([{"opt_name": name, "opt_value": value}]);
        let body = json!({"port": {"network_id": network, "extra_dhcp_opts": options}});
        assert_eq!(net.refused(&member, "POST", "/ports", body).await.0, 400, "{name:?} {value:?}");
    }
}

/// CVE-2015-3221: allowed address pairs of a whole family broke the agent of everybody on the node.
#[tokio::test]
async fn ossa_2015_012_pairs_of_everything_are_told_as_they_are_and_junk_is_refused() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (port, _) = bound(&net, &member).await;
    let path = format!("/ports/{port}");
    for bad in ["10.0.0.0/99", "0.0.0.0/0\n", "any", "", "::/129"] {
        let body = json!({"port": {"allowed_address_pairs": [{"ip_address": bad}]}});
        assert_eq!(net.refused(&member, "PUT", &path, body).await.0, 400, "{bad:?}");
    }
    let all_of_it = json!({"allowed_address_pairs": [{"ip_address": "0.0.0.0/0"}, {"ip_address": "::/0"}]});
    net.change(&member, &path, "port", all_of_it).await;
    let key = SectionKey::Port(port.parse::<Id<Port>>().unwrap().uuid());
    let Some(Section::Port(told)) = (network::sections::SOURCE.section)(&net.cloud.cell.read(), "n1", &key)
    else {
        panic!("no section of the port");
    };
    assert_eq!(told.pairs.iter().map(|(net, _)| net.to_string()).collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"]);
}

/// CVE-2024-53916: tags of another's things. Here for every resource that has tags, and every way to write them.
#[tokio::test]
async fn ossa_2024_005_tags_are_written_by_owners_only() {
    let net = Net::new().await;
    let (victim, thief) = (net.cloud.member("victim").await, net.cloud.member("thief").await);
    let (external, _) = net.external("203.0.113.0/24").await;
    let (network, subnet) = net.network(&victim, "10.0.0.0/24").await;
    let router = net.router(&victim, &external, &subnet).await;
    let port = id(&net.make(&victim, "ports", "port", json!({"network_id": network})).await);
    let floating = json!({"floating_network_id": external});
    let floating = id(&net.make(&victim, "floatingips", "floatingip", floating).await);
    let pool = id(&net.make(&victim, "subnetpools", "subnetpool", json!({"prefixes": ["10.0.0.0/8"]})).await);
    let group = id(&net.make(&victim, "security-groups", "security_group", json!({"name": "g"})).await);
    let addresses = id(&net.make(&victim, "address-groups", "address_group", json!({})).await);
    // Seen, and still another's.
    net.change(&net.admin, &format!("/networks/{network}"), "network", json!({"shared": true})).await;
    for path in [
        format!("/networks/{network}"),
        format!("/subnets/{subnet}"),
        format!("/routers/{router}"),
        format!("/ports/{port}"),
        format!("/floatingips/{floating}"),
        format!("/subnetpools/{pool}"),
        format!("/security-groups/{group}"),
        format!("/address-groups/{addresses}"),
    ] {
        net.good(&victim, "PUT", &format!("{path}/tags"), json!({"tags": ["mine"]})).await;
        for (method, more, body) in [
            ("PUT", "/tags", json!({"tags": ["theirs"]})),
            ("POST", "/tags", json!({"tags": ["theirs"]})),
            ("DELETE", "/tags", Value::Null),
            ("PUT", "/tags/theirs", Value::Null),
            ("DELETE", "/tags/mine", Value::Null),
        ] {
            let (status, _) = net.refused(&thief, method, &format!("{path}{more}"), body).await;
            assert!([403, 404].contains(&status), "{method} {path}{more}: {status}");
        }
        assert_eq!(net.get(&victim, &format!("{path}/tags")).await, json!(["mine"]));
    }
}

/// Every route has a rule that somebody without a role does not pass, but for what says nothing of anybody.
#[tokio::test]
async fn ossa_2024_005_every_route_asks_a_rule() {
    let net = Net::new().await;
    let nobody = net.cloud.person("nobody", "service").await;
    let open = ["/v2.0", "/", "/v2.0/extensions", "/v2.0/extensions/{alias}", "/v2.0/availability_zones"];
    let told = ["/v2.0/service-providers", "/v2.0/default-security-group-rules"];
    let service = network::service(network::App { cell: net.cloud.cell.clone(), fleet: net.fleet.clone() });
    let mut asked = 0;
    for row in &service.rows {
        if open.contains(&row.path) || told.iter().any(|t| row.path.starts_with(t) && row.method == "GET") {
            continue;
        }
        let path = row.path.replace("{id}", "11111111-2222-3333-4444-555555555555");
        let path =
            path.replace("{floatingip_id}", "11111111-2222-3333-4444-555555555555").replace("{tag}", "t");
        let path = path.replace("{project_id}", &nobody.project.to_string());
        let (status, _, _) =
            net.cloud.call(row.method.as_str(), &format!("/network{path}"), &nobody.token, json!({})).await;
        assert_eq!(status, 403, "{} {path}", row.method);
        asked += 1;
    }
    assert!(asked > 100, "only {asked} routes were asked");
}

/// Names of other projects' things are not learned from what one may list.
#[tokio::test]
async fn ossa_2014_008_lists_have_what_is_ones_own() {
    let net = Net::new().await;
    let (victim, other) = (net.cloud.member("victim").await, net.cloud.member("other").await);
    bound(&net, &victim).await;
    let many = ["networks", "subnets", "ports", "security-groups?name=g", "rbac-policies", "address-groups"];
    for path in many {
        assert_eq!(all(&net.get(&other, &format!("/{path}")).await, "id"), Vec::<String>::new(), "{path}");
    }
}
