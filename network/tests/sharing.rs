//! Sharing: RBAC policies, and what is seen and used by them; address scopes and groups.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use serde_json::{Value, json};
use support::{Net, all, id};

fn policy(kind: &str, object: &str, action: &str, target: &str) -> Value {
    json!({"object_type": kind, "object_id": object, "action": action, "target_tenant": target})
}

#[tokio::test]
async fn a_network_is_shared_with_one_project() {
    let net = Net::new().await;
    let (owner, friend) = (net.cloud.member("owner").await, net.cloud.member("friend").await);
    let stranger = net.cloud.member("stranger").await;
    let (network, _) = net.network(&owner, "10.0.0.0/24").await;
    let new = policy("network", &network, "access_as_shared", &friend.project.to_string());
    let made = net.make(&owner, "rbac-policies", "rbac_policy", new.clone()).await;
    assert_eq!(made["target_tenant"], json!(friend.project));
    let twice = net.refused(&owner, "POST", "/rbac-policies", json!({"rbac_policy": new})).await;
    assert_eq!(twice, (409, "DuplicateRbacPolicy".into()));
    let path = format!("/networks/{network}");
    assert_eq!(net.get(&friend, &path).await["shared"], true);
    assert_eq!(net.get(&owner, &path).await["shared"], false);
    assert_eq!(net.refused(&stranger, "GET", &path, Value::Null).await.0, 404);
    let port = id(&net.make(&friend, "ports", "port", json!({"network_id": network})).await);
    let rbac = format!("/rbac-policies/{}", id(&made));
    let used = net.refused(&owner, "DELETE", &rbac, Value::Null).await;
    assert_eq!(used, (409, "RbacPolicyInUse".into()));
    let away = json!({"rbac_policy": {"target_tenant": stranger.project}});
    assert_eq!(net.refused(&owner, "PUT", &rbac, away.clone()).await.0, 409);
    net.delete(&friend, &format!("/ports/{port}")).await;
    net.good(&owner, "PUT", &rbac, away).await;
    assert_eq!(net.refused(&friend, "GET", &path, Value::Null).await.0, 404);
    net.delete(&owner, &path).await;
    assert_eq!(net.refused(&owner, "GET", &rbac, Value::Null).await.0, 404, "it goes with its object");
}

#[tokio::test]
async fn only_administrators_share_with_everyone_or_make_external() {
    let net = Net::new().await;
    let (owner, other) = (net.cloud.member("owner").await, net.cloud.member("other").await);
    let (network, _) = net.network(&owner, "10.0.0.0/24").await;
    for (action, target) in [("access_as_shared", "*"), ("access_as_external", &*other.project.to_string())] {
        let body = json!({"rbac_policy": policy("network", &network, action, target)});
        assert_eq!(net.refused(&owner, "POST", "/rbac-policies", body).await.0, 403, "{action}");
    }
    let theirs = policy("network", &network, "access_as_shared", &other.project.to_string());
    let body = json!({"rbac_policy": theirs});
    assert_eq!(net.refused(&other, "POST", "/rbac-policies", body).await.0, 404, "another's network");
    for body in [
        policy("network", &network, "access_as_friend", &other.project.to_string()),
        policy("server", &network, "access_as_shared", &other.project.to_string()),
        policy("network", &network, "access_as_shared", "somebody"),
    ] {
        let refused = net.refused(&owner, "POST", "/rbac-policies", json!({"rbac_policy": body})).await;
        assert_eq!(refused, (400, "InvalidInput".into()));
    }
}

#[tokio::test]
async fn shared_and_external_are_policies_for_everyone() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let (external, subnet) = net.external("203.0.113.0/24").await;
    let filter = format!("/rbac-policies?object_id={external}");
    let policies = net.get(&net.admin, &filter).await;
    assert_eq!(all(&policies, "action"), ["access_as_external"]);
    assert_eq!(net.get(&member, &format!("/networks/{external}")).await["router:external"], true);
    assert_eq!(net.get(&member, &format!("/subnets/{subnet}")).await["router:external"], true);
    let port = json!({"port": {"network_id": external}});
    assert_eq!(net.refused(&member, "POST", "/ports", port).await.0, 403, "seen, not used");
    let (_, inner) = net.network(&member, "10.0.0.0/24").await;
    let router = net.router(&member, &external, &inner).await;
    let rbac = format!("/rbac-policies/{}", id(&policies[0]));
    assert_eq!(net.refused(&net.admin, "DELETE", &rbac, Value::Null).await.1, "RbacPolicyInUse");
    let plain = json!({"network": {"router:external": false}});
    let path = format!("/networks/{external}");
    assert_eq!(net.refused(&net.admin, "PUT", &path, plain.clone()).await.1, "ExternalNetworkInUse");
    let unplug = format!("/routers/{router}/remove_router_interface");
    net.good(&member, "PUT", &unplug, json!({"subnet_id": inner})).await;
    net.delete(&member, &format!("/routers/{router}")).await;
    net.delete(&net.admin, &rbac).await;
    assert_eq!(net.get(&net.admin, &path).await["router:external"], false);
    assert_eq!(net.refused(&member, "GET", &path, Value::Null).await.0, 404);
    net.change(&net.admin, &path, "network", json!({"shared": true})).await;
    assert_eq!(net.get(&member, &path).await["shared"], true);
    net.make(&member, "ports", "port", json!({"network_id": external})).await;
    let unshare = json!({"network": {"shared": false}});
    assert_eq!(net.refused(&net.admin, "PUT", &path, unshare).await.1, "InvalidSharedSetting");
}

#[tokio::test]
async fn pools_of_a_scope_do_not_overlap() {
    let net = Net::new().await;
    let (owner, friend) = (net.cloud.member("owner").await, net.cloud.member("friend").await);
    let new = json!({"name": "s", "ip_version": 4});
    let scope = id(&net.make(&owner, "address-scopes", "address_scope", new).await);
    let pool = |prefix: &str| json!({"name": "p", "prefixes": [prefix], "address_scope_id": scope});
    let first = net.make(&owner, "subnetpools", "subnetpool", pool("10.0.0.0/16")).await;
    assert_eq!(first["address_scope_id"], json!(scope));
    for (prefix, name) in [
        ("10.0.128.0/17", "AddressScopePrefixConflict"),
        ("2001:db8::/48", "IllegalSubnetPoolIpVersionAssociationToAddressScope"),
    ] {
        let refused = net.refused(&owner, "POST", "/subnetpools", json!({"subnetpool": pool(prefix)})).await;
        assert_eq!(refused, (400, name.into()));
    }
    let body = json!({"subnetpool": pool("10.1.0.0/16")});
    assert_eq!(net.refused(&friend, "POST", "/subnetpools", body.clone()).await.0, 404);
    let grant = policy("address_scope", &scope, "access_as_shared", &friend.project.to_string());
    net.make(&owner, "rbac-policies", "rbac_policy", grant).await;
    net.good(&friend, "POST", "/subnetpools", body).await;
    let path = format!("/address-scopes/{scope}");
    assert_eq!(net.refused(&owner, "DELETE", &path, Value::Null).await.1, "AddressScopeInUse");
    let network = id(&net.make(&owner, "networks", "network", json!({})).await);
    let new = json!({"network_id": network, "ip_version": 4, "subnetpool_id": id(&first), "prefixlen": 24});
    net.make(&owner, "subnets", "subnet", new).await;
    assert_eq!(net.get(&owner, &format!("/networks/{network}")).await["ipv4_address_scope"], json!(scope));
}

#[tokio::test]
async fn an_address_group_is_the_remote_of_a_rule() {
    let net = Net::new().await;
    let owner = net.cloud.member("owner").await;
    let new = json!({"name": "g", "addresses": ["10.0.0.1", "10.1.0.9/16", "2001:db8::/64"]});
    let group = net.make(&owner, "address-groups", "address_group", new).await;
    assert_eq!(group["addresses"], json!(["10.0.0.1/32", "10.1.0.0/16", "2001:db8::/64"]));
    let path = format!("/address-groups/{}", id(&group));
    let (add, remove) = (format!("{path}/add_addresses"), format!("{path}/remove_addresses"));
    let one = json!({"addresses": ["10.0.0.1/32"]});
    assert_eq!(net.refused(&owner, "PUT", &add, one.clone()).await, (400, "AddressesAlreadyExist".into()));
    net.good(&owner, "PUT", &remove, one.clone()).await;
    assert_eq!(net.refused(&owner, "PUT", &remove, one).await, (404, "AddressesNotFound".into()));
    let bad = json!({"addresses": ["10.0.0.0/99"]});
    assert_eq!(net.refused(&owner, "PUT", &add, bad).await.0, 400);
    let security = id(&net.make(&owner, "security-groups", "security_group", json!({"name": "s"})).await);
    let rule = json!({
        "security_group_id": security, "direction": "ingress", "remote_address_group_id": id(&group),
    });
    let made = net.make(&owner, "security-group-rules", "security_group_rule", rule.clone()).await;
    assert_eq!(made["remote_address_group_id"], group["id"]);
    let mut both = rule;
    both["remote_ip_prefix"] = json!("10.0.0.0/8");
    let body = json!({"security_group_rule": both});
    assert_eq!(net.refused(&owner, "POST", "/security-group-rules", body).await.0, 400);
    assert_eq!(net.refused(&owner, "DELETE", &path, Value::Null).await.1, "AddressGroupInUse");
}

#[tokio::test]
async fn metering_is_the_administrators() {
    let net = Net::new().await;
    let member = net.cloud.member("member").await;
    let body = json!({"metering_label": {"name": "l"}});
    assert_eq!(net.refused(&member, "POST", "/metering/metering-labels", body).await.0, 403);
    let label =
        net.make(&net.admin, "metering/metering-labels", "metering_label", json!({"name": "l"})).await;
    let rule =
        json!({"metering_label_id": id(&label), "remote_ip_prefix": "10.0.0.0/24", "direction": "egress"});
    let many = "metering/metering-label-rules";
    let made = net.make(&net.admin, many, "metering_label_rule", rule.clone()).await;
    assert_eq!(made["excluded"], false);
    let twice =
        net.refused(&net.admin, "POST", &format!("/{many}"), json!({"metering_label_rule": rule})).await;
    assert_eq!(twice, (409, "MeteringLabelRuleOverlaps".into()));
    net.delete(&net.admin, &format!("/metering/metering-labels/{}", id(&label))).await;
    assert_eq!(net.get(&net.admin, &format!("/{many}")).await, json!([]));
}
