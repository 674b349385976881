//! Policy rules in Neutron's names, and the paths of each resource beside them.

use api::Rule;

/// The paths and rules of one resource.
#[derive(Clone, Copy)]
pub struct Routes {
    pub many: &'static str,
    pub one: &'static str,
    pub tags: &'static str,
    pub tag: &'static str,
    pub get: &'static str,
    pub create: &'static str,
    pub update: &'static str,
    pub delete: &'static str,
}

macro_rules! routes {
    ($($name:ident $path:literal $word:literal;)*) => { $(
        pub const $name: Routes = Routes {
            many: concat!("/v2.0/", $path),
            one: concat!("/v2.0/", $path, "/{id}"),
            tags: concat!("/v2.0/", $path, "/{id}/tags"),
            tag: concat!("/v2.0/", $path, "/{id}/tags/{tag}"),
            get: concat!("get_", $word),
            create: concat!("create_", $word),
            update: concat!("update_", $word),
            delete: concat!("delete_", $word),
        };
    )* };
}

routes! {
    NETWORK_ROUTES "networks" "network";
    SUBNET_ROUTES "subnets" "subnet";
    SUBNET_POOL_ROUTES "subnetpools" "subnetpool";
    PORT_ROUTES "ports" "port";
    ROUTER_ROUTES "routers" "router";
    FLOATING_IP_ROUTES "floatingips" "floatingip";
    SECURITY_GROUP_ROUTES "security-groups" "security_group";
    SECURITY_GROUP_RULE_ROUTES "security-group-rules" "security_group_rule";
    RBAC_POLICY_ROUTES "rbac-policies" "rbac_policy";
    ADDRESS_SCOPE_ROUTES "address-scopes" "address_scope";
    ADDRESS_GROUP_ROUTES "address-groups" "address_group";
    METERING_LABEL_ROUTES "metering/metering-labels" "metering_label";
    METERING_LABEL_RULE_ROUTES "metering/metering-label-rules" "metering_label_rule";
    PORT_FORWARDING_ROUTES "floatingips/{floatingip_id}/port_forwardings" "floatingip_port_forwarding";
}

const READER: &str = "role:admin or (role:reader and project_id:%(project_id)s)";
const MEMBER: &str = "role:admin or (role:member and project_id:%(project_id)s)";
const ADMIN: &str = "role:admin";

const fn rule(name: &'static str, check: &'static str, about: &'static str) -> Rule {
    Rule { name, check, about }
}

macro_rules! rules {
    ($($word:literal),*; $($more:expr,)*) => {
        pub const RULES: &[Rule] = &[
            $(
                rule(concat!("get_", $word), READER, concat!("List and show, ", $word)),
                rule(concat!("create_", $word), MEMBER, concat!("Create, ", $word)),
                rule(concat!("update_", $word), MEMBER, concat!("Update and tag, ", $word)),
                rule(concat!("delete_", $word), MEMBER, concat!("Delete, ", $word)),
            )*
            $($more,)*
        ];
    };
}

rules! {
    "network", "subnet", "subnetpool", "port", "router", "floatingip", "security_group", "security_group_rule",
    "rbac_policy", "address_scope", "address_group", "floatingip_port_forwarding";
    rule("get_metering_label", ADMIN, "List and show metering labels"),
    rule("create_metering_label", ADMIN, "Create a metering label"),
    rule("update_metering_label", ADMIN, "Change a metering label"),
    rule("delete_metering_label", ADMIN, "Delete a metering label"),
    rule("get_metering_label_rule", ADMIN, "List and show rules of metering labels"),
    rule("create_metering_label_rule", ADMIN, "Create a rule of a metering label"),
    rule("update_metering_label_rule", ADMIN, "Change a rule of a metering label"),
    rule("delete_metering_label_rule", ADMIN, "Delete a rule of a metering label"),
    rule("add_extraroutes", MEMBER, "Add extra routes to a router"),
    rule("remove_extraroutes", MEMBER, "Remove extra routes from a router"),
    rule("add_prefixes", MEMBER, "Add prefixes to a subnet pool"),
    rule("remove_prefixes", MEMBER, "Remove prefixes from a subnet pool"),
    rule("get_network_ip_availability", ADMIN, "See how many addresses are taken"),
    rule("get_auto_allocated_topology", MEMBER, "Get the project's own topology, made on first sight"),
    rule("delete_auto_allocated_topology", MEMBER, "Remove the project's own topology"),
    rule("get_floatingip_pool", READER, "List where floating IPs come from"),
    rule("get_default_security_group_rule", "@", "List and show the rules of new security groups"),
    rule("create_default_security_group_rule", ADMIN, "Add a rule for new security groups"),
    rule("delete_default_security_group_rule", ADMIN, "Remove a rule for new security groups"),
    rule("add_addresses", MEMBER, "Add addresses to an address group"),
    rule("remove_addresses", MEMBER, "Remove addresses from an address group"),
    rule("create_address_scope:shared", ADMIN, "Share an address scope with all projects"),
    rule("update_address_scope:shared", ADMIN, "Share an address scope with all projects"),
    rule("create_rbac_policy:target_tenant", ADMIN, "Share something with all projects"),
    rule("update_rbac_policy:target_tenant", ADMIN, "Share something with all projects"),
    rule("create_rbac_policy:access_as_external", ADMIN, "Make a network external"),
    rule("get_extensions", "@", "List and show extensions"),
    rule("get_availability_zone", "@", "List availability zones"),
    rule("get_service_provider", "@", "List service providers"),
    rule("trace_port", ADMIN, "Ask which way a packet from a port would take"),
    rule("get_agent", READER, "List and show agents; others than administrators see none"),
    rule("update_agent", ADMIN, "Describe an agent, or take it out of service"),
    rule("delete_agent", ADMIN, "Remove an agent"),
    rule("get_quota", READER, "See quotas"),
    rule("update_quota", ADMIN, "Set quotas"),
    rule("delete_quota", ADMIN, "Reset quotas"),
    rule("add_router_interface", MEMBER, "Connect a subnet to a router"),
    rule("remove_router_interface", MEMBER, "Disconnect a subnet from a router"),
    rule("create_network:shared", ADMIN, "Share a network with all projects"),
    rule("update_network:shared", ADMIN, "Share a network with all projects"),
    rule("create_network:router:external", ADMIN, "Make a network external"),
    rule("update_network:router:external", ADMIN, "Make a network external"),
    rule("create_network:is_default", ADMIN, "Make a network the default external one"),
    rule("update_network:is_default", ADMIN, "Make a network the default external one"),
    rule("create_network:provider:network_type", ADMIN, "Choose the kind of a network"),
    rule("update_network:provider:network_type", ADMIN, "Choose the kind of a network"),
    rule("create_network:provider:physical_network", ADMIN, "Choose the physical network"),
    rule("update_network:provider:physical_network", ADMIN, "Choose the physical network"),
    rule("create_network:provider:segmentation_id", ADMIN, "Choose the segmentation id"),
    rule("update_network:provider:segmentation_id", ADMIN, "Choose the segmentation id"),
    rule("create_subnetpool:shared", ADMIN, "Share a subnet pool"),
    rule("update_subnetpool:shared", ADMIN, "Share a subnet pool"),
    rule("create_subnetpool:is_default", ADMIN, "Make a subnet pool the default"),
    rule("update_subnetpool:is_default", ADMIN, "Make a subnet pool the default"),
    rule("create_port:binding:host_id", "role:admin or role:service", "Bind a port to a node"),
    rule("update_port:binding:host_id", "role:admin or role:service", "Bind a port to a node"),
    rule("create_port:binding:profile", "role:admin or role:service", "Write a binding profile"),
    rule("update_port:binding:profile", "role:admin or role:service", "Write a binding profile"),
    rule("create_port:device_owner", "role:admin or role:service", "Use a device owner of the network service"),
    rule("update_port:device_owner", "role:admin or role:service", "Use a device owner of the network service"),
    rule("create_router:distributed", ADMIN, "Choose where a router runs"),
    rule("update_router:distributed", ADMIN, "Choose where a router runs"),
    rule("create_router:ha", ADMIN, "Choose where a router runs"),
    rule("update_router:ha", ADMIN, "Choose where a router runs"),
    rule("create_router:external_gateway_info:enable_snat", ADMIN, "Switch SNAT"),
    rule("update_router:external_gateway_info:enable_snat", ADMIN, "Switch SNAT"),
    rule("create_router:external_gateway_info:external_fixed_ips", ADMIN, "Choose a gateway's address"),
    rule("update_router:external_gateway_info:external_fixed_ips", ADMIN, "Choose a gateway's address"),
    rule("create_floatingip:floating_ip_address", ADMIN, "Choose a floating IP's address"),
}
