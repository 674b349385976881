//! Networking API v2.0: networks, subnets, pools, ports, routers, floating IPs, security groups.
//!
//! Every create, update and delete is one transaction. Nothing here touches a node: `sections` renders what nodes need.
//! This crate names no server: a port has an owner kind and a device id.
//!
//! Deliberately absent so far: trunks, QoS, VLAN provider networks.

pub mod address_group;
pub mod address_scope;
pub mod agent;
pub mod attr;
mod default_rule;
mod extension;
pub mod floating_ip;
mod ip_availability;
pub mod ipam;
pub mod metering;
pub mod network;
pub mod port;
pub mod port_forwarding;
mod quota;
pub mod rbac;
mod reach;
pub mod resource;
pub mod router;
pub mod rules;
pub mod sections;
pub mod security_group;
pub mod spread;
pub mod subnet;
pub mod subnet_pool;
mod tag;
pub mod topology;
mod trace;
mod zone;

use address_group::AddressGroup;
use address_scope::AddressScope;
use api::route::OPEN;
use api::{Faults, Mounted, Reply, Route, Service, delete, get, post, put};
use fleet::Fleet;
use floating_ip::FloatingIp;
use identity::limit::Resource as Limited;
use metering::{MeteringLabel, MeteringLabelRule};
use network::Network;
use port::Port;
use port_forwarding::PortForwarding;
use rbac::RbacPolicy;
use resource::Resource;
use router::Router;
use security_group::{SecurityGroup, SecurityGroupRule};
use store::{Cell, Schema};
use subnet::Subnet;
use subnet_pool::SubnetPool;

pub const NETWORK: Limited = Limited { name: "network:network", default: 100 };
pub const SUBNET: Limited = Limited { name: "network:subnet", default: 100 };
pub const SUBNET_POOL: Limited = Limited { name: "network:subnetpool", default: -1 };
pub const PORT: Limited = Limited { name: "network:port", default: 500 };
pub const ROUTER: Limited = Limited { name: "network:router", default: 10 };
pub const FLOATING_IP: Limited = Limited { name: "network:floatingip", default: 50 };
pub const SECURITY_GROUP: Limited = Limited { name: "network:security_group", default: 10 };
pub const SECURITY_GROUP_RULE: Limited = Limited { name: "network:security_group_rule", default: 100 };
pub const RBAC_POLICY: Limited = Limited { name: "network:rbac_policy", default: 10 };
/// What projects are limited in.
pub const RESOURCES: [Limited; 9] = [
    NETWORK,
    SUBNET,
    SUBNET_POOL,
    PORT,
    ROUTER,
    FLOATING_IP,
    SECURITY_GROUP,
    SECURITY_GROUP_RULE,
    RBAC_POLICY,
];

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub cell: Cell,
    /// Who is alive, for the agents.
    pub fleet: Fleet,
}

/// The kinds of records that this service keeps.
pub fn records(schema: Schema) -> Schema {
    schema
        .record::<Network>()
        .record::<Subnet>()
        .record::<SubnetPool>()
        .record::<Port>()
        .record::<Router>()
        .record::<FloatingIp>()
        .record::<SecurityGroup>()
        .record::<SecurityGroupRule>()
        .record::<agent::Agent>()
        .record::<RbacPolicy>()
        .record::<AddressScope>()
        .record::<AddressGroup>()
        .record::<PortForwarding>()
        .record::<MeteringLabel>()
        .record::<MeteringLabelRule>()
        .record::<default_rule::DefaultRules>()
        .record::<topology::Topology>()
}

/// The service under `/network`.
pub fn service(app: App) -> Mounted {
    let service = Service {
        name: "network",
        prefix: "/network",
        faults: Faults::Network,
        microversions: None,
        project_in_path: false,
        request_id_header: None,
        rules: &[rules::RULES],
        routes: routes(),
    };
    service.mount(app)
}

fn routes() -> Vec<Route<App>> {
    let mut routes = vec![
        get("/", OPEN, extension::versions),
        get("/v2.0", OPEN, extension::resources),
        get("/v2.0/extensions", "get_extensions", extension::list),
        get("/v2.0/extensions/{alias}", "get_extensions", extension::show),
        get("/v2.0/availability_zones", "get_availability_zone", zone::list),
        get("/v2.0/service-providers", "get_service_provider", extension::providers),
        get("/v2.0/ports/{id}/trace", "trace_port", trace::show),
        get("/v2.0/agents", "get_agent", agent::list),
        get("/v2.0/agents/{id}", "get_agent", agent::show),
        put("/v2.0/agents/{id}", "update_agent", agent::update),
        delete("/v2.0/agents/{id}", "delete_agent", agent::delete),
        get("/v2.0/quotas", "get_quota", quota::list),
        get("/v2.0/quotas/{project_id}", "get_quota", quota::show),
        put("/v2.0/quotas/{project_id}", "update_quota", quota::update),
        delete("/v2.0/quotas/{project_id}", "delete_quota", quota::delete),
        get("/v2.0/quotas/{project_id}/default", "get_quota", quota::default),
        get("/v2.0/quotas/{project_id}/details.json", "get_quota", quota::details),
        get("/v2.0/quotas/{project_id}/details", "get_quota", quota::details),
        put("/v2.0/routers/{id}/add_router_interface", "add_router_interface", router::add_interface),
        put(
            "/v2.0/routers/{id}/remove_router_interface",
            "remove_router_interface",
            router::remove_interface,
        ),
        put("/v2.0/routers/{id}/add_extraroutes", "add_extraroutes", router::add_routes),
        put("/v2.0/routers/{id}/remove_extraroutes", "remove_extraroutes", router::remove_routes),
        put("/v2.0/subnetpools/{id}/add_prefixes", "add_prefixes", subnet_pool::add_prefixes),
        put("/v2.0/subnetpools/{id}/remove_prefixes", "remove_prefixes", subnet_pool::remove_prefixes),
        get("/v2.0/network-ip-availabilities", "get_network_ip_availability", ip_availability::list),
        get("/v2.0/network-ip-availabilities/{id}", "get_network_ip_availability", ip_availability::show),
        get("/v2.0/auto-allocated-topology/{project_id}", "get_auto_allocated_topology", topology::show),
        delete(
            "/v2.0/auto-allocated-topology/{project_id}",
            "delete_auto_allocated_topology",
            topology::delete,
        ),
        get("/v2.0/floatingip_pools", "get_floatingip_pool", floating_ip::pools),
        get("/v2.0/default-security-group-rules", "get_default_security_group_rule", default_rule::list),
        post(
            "/v2.0/default-security-group-rules",
            "create_default_security_group_rule",
            default_rule::create,
        ),
        get("/v2.0/default-security-group-rules/{id}", "get_default_security_group_rule", default_rule::show),
        delete(
            "/v2.0/default-security-group-rules/{id}",
            "delete_default_security_group_rule",
            default_rule::delete,
        ),
        get("/v2.0/security-groups", "get_security_group", list_groups),
        put("/v2.0/address-groups/{id}/add_addresses", "add_addresses", address_group::add_addresses),
        put(
            "/v2.0/address-groups/{id}/remove_addresses",
            "remove_addresses",
            address_group::remove_addresses,
        ),
    ];
    let nested = rules::PORT_FORWARDING_ROUTES;
    routes.push(get(nested.many, nested.get, port_forwarding::list));
    routes.push(post(nested.many, nested.create, port_forwarding::create));
    routes.push(get(nested.one, nested.get, port_forwarding::show));
    routes.push(put(nested.one, nested.update, port_forwarding::update));
    routes.push(delete(nested.one, nested.delete, port_forwarding::delete));
    crud::<Network>(&mut routes, rules::NETWORK_ROUTES);
    crud::<Subnet>(&mut routes, rules::SUBNET_ROUTES);
    crud::<SubnetPool>(&mut routes, rules::SUBNET_POOL_ROUTES);
    crud::<Port>(&mut routes, rules::PORT_ROUTES);
    crud::<Router>(&mut routes, rules::ROUTER_ROUTES);
    crud::<FloatingIp>(&mut routes, rules::FLOATING_IP_ROUTES);
    crud::<SecurityGroup>(&mut routes, rules::SECURITY_GROUP_ROUTES);
    crud::<SecurityGroupRule>(&mut routes, rules::SECURITY_GROUP_RULE_ROUTES);
    crud::<RbacPolicy>(&mut routes, rules::RBAC_POLICY_ROUTES);
    crud::<AddressScope>(&mut routes, rules::ADDRESS_SCOPE_ROUTES);
    crud::<AddressGroup>(&mut routes, rules::ADDRESS_GROUP_ROUTES);
    crud::<MeteringLabel>(&mut routes, rules::METERING_LABEL_ROUTES);
    crud::<MeteringLabelRule>(&mut routes, rules::METERING_LABEL_RULE_ROUTES);
    tags::<Network>(&mut routes, rules::NETWORK_ROUTES);
    tags::<Subnet>(&mut routes, rules::SUBNET_ROUTES);
    tags::<SubnetPool>(&mut routes, rules::SUBNET_POOL_ROUTES);
    tags::<Port>(&mut routes, rules::PORT_ROUTES);
    tags::<Router>(&mut routes, rules::ROUTER_ROUTES);
    tags::<FloatingIp>(&mut routes, rules::FLOATING_IP_ROUTES);
    tags::<SecurityGroup>(&mut routes, rules::SECURITY_GROUP_ROUTES);
    tags::<AddressGroup>(&mut routes, rules::ADDRESS_GROUP_ROUTES);
    routes
}

fn crud<R: Resource>(routes: &mut Vec<Route<App>>, at: rules::Routes) {
    routes.push(get(at.many, at.get, resource::list::<R>));
    routes.push(post(at.many, at.create, resource::create::<R>));
    routes.push(get(at.one, at.get, resource::show::<R>));
    routes.push(put(at.one, at.update, resource::update::<R>));
    routes.push(delete(at.one, at.delete, resource::delete::<R>));
}

fn tags<R: tag::Tagged>(routes: &mut Vec<Route<App>>, at: rules::Routes) {
    routes.push(get(at.tags, at.get, tag::list::<R>));
    routes.push(post(at.tags, at.update, tag::create::<R>));
    routes.push(put(at.tags, at.update, tag::replace::<R>));
    routes.push(delete(at.tags, at.update, tag::clear::<R>));
    routes.push(get(at.tag, at.get, tag::show::<R>));
    routes.push(put(at.tag, at.update, tag::add::<R>));
    routes.push(delete(at.tag, at.update, tag::remove::<R>));
}

/// GET /security-groups: the project's default group comes into being with the first look.
async fn list_groups(app: App, call: api::Call) -> base::Result<Reply> {
    let project = call.cx.project();
    if project != base::ProjectId::ZERO && security_group::find_default(&app.cell.read(), project).is_none() {
        call.write(&app.cell, move |tx| security_group::default(tx, project)).await?;
    }
    resource::list::<SecurityGroup>(app, call).await
}
