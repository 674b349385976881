//! What is offered: versions, the resources of v2.0, and the extensions. One is listed only when it works.

use crate::App;
use api::{Call, Reply};
use base::{Error, Result};
use serde_json::{Value, json};

/// Alias and name.
const EXTENSIONS: &[(&str, &str)] = &[
    ("address-group", "Address group"),
    ("address-scope", "Address scope"),
    ("agent", "agent"),
    ("allowed-address-pairs", "Allowed Address Pairs"),
    ("auto-allocated-topology", "Auto Allocated Topology Services"),
    ("availability_zone", "Availability Zone"),
    ("binding", "Port Binding"),
    ("binding-extended", "Port Bindings Extended"),
    ("default-subnetpools", "Default Subnetpools"),
    ("dvr", "Distributed Virtual Router"),
    ("empty-string-filtering", "Empty String Filtering Extension"),
    ("expose-port-forwarding-in-fip", "Expose Port Forwarding in FIP"),
    ("ext-gw-mode", "Neutron L3 Configurable external gateway mode"),
    ("external-net", "Neutron external network"),
    ("extra_dhcp_opt", "Neutron Extra DHCP options"),
    ("extraroute", "Neutron Extra Route"),
    ("extraroute-atomic", "Atomically add/remove extra routes"),
    ("filter-validation", "Filter parameters validation"),
    ("fip-port-details", "Floating IP Port Details Extension"),
    ("floating-ip-port-forwarding", "Floating IP Port Forwarding"),
    ("floating-ip-port-forwarding-description", "Floating IP Port Forwarding new field"),
    ("floating-ip-port-forwarding-detail", "Floating IP Port Forwarding details"),
    ("floating-ip-port-forwarding-port-ranges", "Floating IP Port Forwarding support to port ranges"),
    ("floatingip-pools", "Floating IP Pools Extension"),
    ("ip-substring-filtering", "IP address substring filtering"),
    ("metering", "Neutron Metering"),
    ("net-mtu", "Network MTU"),
    ("net-mtu-writable", "Network MTU (writable)"),
    ("network-ip-availability", "Network IP Availability"),
    ("network_availability_zone", "Network Availability Zone"),
    ("pagination", "Pagination support"),
    ("port-mac-address-regenerate", "Neutron Port MAC address regenerate"),
    ("port-security", "Port Security"),
    ("project-id", "project_id field enabled"),
    ("provider", "Provider Network"),
    ("quota-check-limit", "Quota engine limit check"),
    ("quota-check-limit-default", "Quota engine limit check by default"),
    ("quota_details", "Quota details management support"),
    ("quotas", "Quota management support"),
    ("rbac-address-group", "Add address group type to RBAC"),
    ("rbac-address-scope", "Address scope RBAC"),
    ("rbac-policies", "RBAC Policies"),
    ("rbac-security-groups", "Add security_group type to network RBAC"),
    ("rbac-subnetpool", "Add subnetpool type to RBAC"),
    ("router", "Neutron L3 Router"),
    ("router_availability_zone", "Router Availability Zone"),
    ("security-group", "security-group"),
    ("security-groups-default-rules", "Default rules for security groups"),
    ("security-groups-normalized-cidr", "Normalized CIDR field for security group rules"),
    ("security-groups-remote-address-group", "Remote address group id field for security group rules"),
    ("security-groups-shared-filtering", "Security group filtering on the shared field"),
    ("service-type", "Neutron Service Type Management"),
    ("sorting", "Sorting support"),
    ("standard-attr-description", "standard-attr-description"),
    ("standard-attr-revisions", "Resource revision numbers"),
    ("standard-attr-tag", "Tag support for resources with standard attribute"),
    ("standard-attr-timestamp", "Resource timestamps"),
    ("stateful-security-group", "Stateful security group"),
    ("subnet-external-network", "Subnet belongs to an external network"),
    ("subnet-service-types", "Subnet service types"),
    ("subnet_allocation", "Subnet Allocation"),
    ("subnetpool-prefix-ops", "Subnet Pool Prefix Operations"),
    ("tag", "Tag support"),
    ("tag-creation", "Tag creation extension"),
    ("uplink-status-propagation", "Uplink Status Propagation"),
];

fn view(alias: &str, name: &str) -> Value {
    json!({"alias": alias, "name": name, "description": name, "updated": "2026-01-01T00:00:00-00:00", "links": []})
}

/// GET /v2.0/extensions
pub async fn list(_: App, _: Call) -> Result<Reply> {
    let all: Vec<_> = EXTENSIONS.iter().map(|(alias, name)| view(alias, name)).collect();
    Ok(Reply::ok(&json!({"extensions": all})))
}

/// GET /v2.0/extensions/{alias}
pub async fn show(_: App, call: Call) -> Result<Reply> {
    let alias = call.param("alias");
    let found = EXTENSIONS.iter().find(|(a, _)| *a == alias);
    let (alias, name) = found.ok_or_else(|| {
        Error::not_found(format!("Extension with alias {} does not exist", alias.escape_default()))
            .named("ExtensionNotFound")
    })?;
    Ok(Reply::ok(&json!({"extension": view(alias, name)})))
}

/// GET /
pub async fn versions(_: App, call: Call) -> Result<Reply> {
    let links = [json!({"rel": "self", "href": format!("{}/v2.0/", call.base)})];
    Ok(Reply::ok(&json!({"versions": [{"id": "v2.0", "status": "CURRENT", "links": links}]})))
}

/// GET /v2.0/
pub async fn resources(_: App, call: Call) -> Result<Reply> {
    const RESOURCES: &[(&str, &str)] = &[
        ("network", "networks"),
        ("subnet", "subnets"),
        ("subnetpool", "subnetpools"),
        ("port", "ports"),
        ("router", "routers"),
        ("floatingip", "floatingips"),
        ("security_group", "security-groups"),
        ("security_group_rule", "security-group-rules"),
        ("rbac_policy", "rbac-policies"),
        ("address_scope", "address-scopes"),
        ("address_group", "address-groups"),
        ("metering_label", "metering-labels"),
        ("metering_label_rule", "metering-label-rules"),
        ("agent", "agents"),
        ("default_security_group_rule", "default-security-group-rules"),
        ("network_ip_availability", "network-ip-availabilities"),
        ("floatingip_pool", "floatingip_pools"),
        ("auto_allocated_topology", "auto-allocated-topology"),
    ];
    let one = |(name, collection): &(&str, &str)| {
        let links = [json!({"rel": "self", "href": format!("{}/v2.0/{collection}", call.base)})];
        json!({"name": name, "collection": collection, "links": links})
    };
    Ok(Reply::ok(&json!({"resources": RESOURCES.iter().map(one).collect::<Vec<_>>()})))
}

/// GET /v2.0/service-providers: what a router flavor could choose from; there is one way to route.
pub async fn providers(_: App, call: Call) -> Result<Reply> {
    let one = json!({"service_type": "L3_ROUTER_NAT", "name": "shisa", "default": true});
    crate::resource::answer(&call, "service_providers", one.as_object().cloned().into_iter().collect())
}
