//! Compute API v2.1, microversions 2.1 to 2.104: servers, flavors, keypairs, quotas, nodes as Nova shows them.
//!
//! Creating a server is one transaction over compute, network and quota. What its node does, and what follows from it,
//! is `sections`, `schedule` and `server::life`; `maintenance` drains nodes.
//!
//! Deliberately absent so far: volumes, resize, migration, rebuild, snapshots, rescue, shelve, server groups,
//! aggregates, remote consoles; of Placement everything but looking at providers.

pub mod flavor;
mod host;
pub mod keypair;
pub mod maintenance;
mod proxy;
mod quota;
pub mod rules;
pub mod schedule;
pub mod sections;
pub mod server;
mod text;
mod version;

pub use flavor::Flavor;
pub use server::Server;

use api::route::OPEN;
use api::{Faults, Microversions, Mounted, Route, Service, delete, get, post, put, v};
use base::Result;
use fleet::Fleet;
use identity::limit::Resource;
use std::pin::Pin;
use std::sync::Arc;
use store::{Cell, Schema};
use uuid::Uuid;

pub const INSTANCES: Resource = Resource { name: "compute:instances", default: 10 };
pub const CORES: Resource = Resource { name: "compute:cores", default: 20 };
pub const RAM: Resource = Resource { name: "compute:ram", default: 51_200 };
pub const KEY_PAIRS: Resource = Resource { name: "compute:key_pairs", default: 100 };
pub const METADATA_ITEMS: Resource = Resource { name: "compute:metadata_items", default: 128 };
pub const SERVER_GROUPS: Resource = Resource { name: "compute:server_groups", default: 10 };
pub const SERVER_GROUP_MEMBERS: Resource = Resource { name: "compute:server_group_members", default: 10 };
/// What projects are limited in.
pub const RESOURCES: [Resource; 7] =
    [INSTANCES, CORES, RAM, KEY_PAIRS, METADATA_ITEMS, SERVER_GROUPS, SERVER_GROUP_MEMBERS];

/// Reads the last lines of a guest's console from its node.
pub type Console = Arc<dyn Fn(&str, Uuid, Option<usize>) -> ConsoleText + Send + Sync>;
pub type ConsoleText = Pin<Box<dyn Future<Output = Result<String>> + Send>>;

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub cell: Cell,
    pub fleet: Fleet,
    pub console: Console,
}

/// The kinds of records that this service keeps, and the scheduler's columns.
pub fn records(schema: Schema) -> Schema {
    schema
        .record::<Flavor>()
        .record::<keypair::Keypair>()
        .record::<Server>()
        .record::<maintenance::Maintenance>()
        .record::<maintenance::Event>()
        .derived::<schedule::Hosts>()
}

/// The service under `/compute`.
pub fn service(app: App) -> Mounted {
    let mut routes = server_routes();
    routes.extend(other_routes());
    let service = Service {
        name: "compute",
        prefix: "/compute",
        faults: Faults::Compute,
        microversions: Some(Microversions {
            word: "compute",
            legacy: Some("x-openstack-nova-api-version"),
            min: v(2, 1),
            max: v(2, 104),
        }),
        project_in_path: true,
        request_id_header: Some("x-compute-request-id"),
        rules: &[rules::RULES],
        routes,
    };
    service.mount(app)
}

/// The service under `/placement`: what tools look at.
pub fn placement_service(app: App) -> Mounted {
    let list = "placement:resource_providers:list";
    let show = "placement:resource_providers:show";
    let service = Service {
        name: "placement",
        prefix: "/placement",
        faults: Faults::Placement,
        microversions: Some(Microversions { word: "placement", legacy: None, min: v(1, 0), max: v(1, 39) }),
        project_in_path: false,
        request_id_header: None,
        rules: &[rules::PLACEMENT_RULES],
        routes: vec![
            get("/", OPEN, version::placement),
            get("/resource_providers", list, host::providers),
            get("/resource_providers/{id}", show, host::provider_show),
            get("/resource_providers/{id}/inventories", show, host::inventories),
            get("/resource_providers/{id}/usages", show, host::usages),
        ],
    };
    service.mount(app)
}

fn server_routes() -> Vec<Route<App>> {
    use server::{action, interface, list, meta, rest};
    const ACTION: &str = "/v2.1/servers/{id}/action";
    const TAGS: &str = "/v2.1/servers/{id}/tags";
    const TAG: &str = "/v2.1/servers/{id}/tags/{tag}";
    const META: &str = "/v2.1/servers/{id}/metadata";
    const ITEM: &str = "/v2.1/servers/{id}/metadata/{key}";
    let (tags, retag) = ("os_compute_api:os-server-tags:index", "os_compute_api:os-server-tags:update_all");
    let (meta_show, meta_write) =
        ("os_compute_api:server-metadata:index", "os_compute_api:server-metadata:update_all");
    vec![
        get("/v2.1/servers", "os_compute_api:servers:index", list::brief),
        post("/v2.1/servers", "os_compute_api:servers:create", rest::create),
        get("/v2.1/servers/detail", "os_compute_api:servers:detail", list::detail),
        get("/v2.1/servers/{id}", "os_compute_api:servers:show", rest::show),
        put("/v2.1/servers/{id}", "os_compute_api:servers:update", rest::update),
        delete("/v2.1/servers/{id}", "os_compute_api:servers:delete", rest::delete),
        post(ACTION, "os_compute_api:servers:start", action::start).action("os-start"),
        post(ACTION, "os_compute_api:servers:stop", action::stop).action("os-stop"),
        post(ACTION, "os_compute_api:servers:reboot", action::reboot).action("reboot"),
        post(ACTION, "os_compute_api:servers:delete", rest::delete).action("forceDelete"),
        post(ACTION, "os_compute_api:os-security-groups:add", action::add_group).action("addSecurityGroup"),
        post(ACTION, "os_compute_api:os-security-groups:remove", action::remove_group)
            .action("removeSecurityGroup"),
        post(ACTION, "os_compute_api:os-multinic:add", action::add_fixed_ip)
            .action("addFixedIp")
            .until(v(2, 43)),
        post(ACTION, "os_compute_api:os-multinic:remove", action::remove_fixed_ip)
            .action("removeFixedIp")
            .until(v(2, 43)),
        post(ACTION, "os_compute_api:os-floating-ips:add", action::add_floating_ip)
            .action("addFloatingIp")
            .until(v(2, 43)),
        post(ACTION, "os_compute_api:os-floating-ips:add", action::remove_floating_ip)
            .action("removeFloatingIp")
            .until(v(2, 43)),
        post(ACTION, "os_compute_api:os-console-output", action::console_output)
            .action("os-getConsoleOutput"),
        post(ACTION, "os_compute_api:os-lock-server:lock", action::lock).action("lock"),
        post(ACTION, "os_compute_api:os-lock-server:unlock", action::unlock).action("unlock"),
        post(ACTION, "os_compute_api:os-admin-actions:reset_state", action::reset_state)
            .action("os-resetState"),
        get("/v2.1/servers/{id}/ips", "os_compute_api:ips:index", action::addresses),
        get("/v2.1/servers/{id}/ips/{network}", "os_compute_api:ips:index", action::addresses_of),
        get(
            "/v2.1/servers/{id}/os-security-groups",
            "os_compute_api:os-security-groups:list",
            action::security_groups,
        ),
        get(
            "/v2.1/servers/{id}/os-server-password",
            "os_compute_api:os-server-password:show",
            action::password,
        ),
        delete(
            "/v2.1/servers/{id}/os-server-password",
            "os_compute_api:os-server-password:clear",
            action::clear_password,
        ),
        get("/v2.1/servers/{id}/os-interface", "os_compute_api:os-attach-interfaces:list", interface::list),
        post(
            "/v2.1/servers/{id}/os-interface",
            "os_compute_api:os-attach-interfaces:create",
            interface::attach,
        ),
        get(
            "/v2.1/servers/{id}/os-interface/{port_id}",
            "os_compute_api:os-attach-interfaces:list",
            interface::show,
        ),
        delete(
            "/v2.1/servers/{id}/os-interface/{port_id}",
            "os_compute_api:os-attach-interfaces:delete",
            interface::detach,
        ),
        get(META, meta_show, meta::list),
        post(META, meta_write, meta::add),
        put(META, meta_write, meta::replace),
        get(ITEM, meta_show, meta::show_item),
        put(ITEM, meta_write, meta::put_item),
        delete(ITEM, meta_write, meta::delete_item),
        get(TAGS, tags, meta::tags).since(v(2, 26)),
        put(TAGS, retag, meta::replace_tags).since(v(2, 26)),
        delete(TAGS, retag, meta::clear_tags).since(v(2, 26)),
        get(TAG, tags, meta::has_tag).since(v(2, 26)),
        put(TAG, retag, meta::add_tag).since(v(2, 26)),
        delete(TAG, retag, meta::remove_tag).since(v(2, 26)),
    ]
}

fn other_routes() -> Vec<Route<App>> {
    const SPECS: &str = "/v2.1/flavors/{id}/os-extra_specs";
    const SPEC: &str = "/v2.1/flavors/{id}/os-extra_specs/{key}";
    const ACCESS: &str = "/v2.1/flavors/{id}/action";
    const GROUPS: &str = "/v2.1/os-security-groups";
    const GROUP: &str = "/v2.1/os-security-groups/{id}";
    const QUOTA: &str = "/v2.1/os-quota-sets/{project_id}";
    const CLASS: &str = "/v2.1/os-quota-class-sets/{class}";
    let (see, write) = ("os_compute_api:os-security-groups:get", "os_compute_api:os-security-groups:create");
    let (specs, add_specs) =
        ("os_compute_api:os-flavor-extra-specs:index", "os_compute_api:os-flavor-extra-specs:create");
    let access = "os_compute_api:os-flavor-access:add_tenant_access";
    let hypervisors = "os_compute_api:os-hypervisors:list";
    vec![
        get("/", OPEN, version::root),
        get("/v2", OPEN, version::old),
        get("/v2.1", OPEN, version::show),
        get("/v2.1/extensions", "os_compute_api:extensions", version::extensions),
        get("/v2.1/flavors", "os_compute_api:flavors", flavor::list),
        post("/v2.1/flavors", "os_compute_api:os-flavor-manage:create", flavor::create),
        get("/v2.1/flavors/detail", "os_compute_api:flavors", flavor::detail),
        get("/v2.1/flavors/{id}", "os_compute_api:flavors", flavor::show),
        put("/v2.1/flavors/{id}", "os_compute_api:os-flavor-manage:update", flavor::update).since(v(2, 55)),
        delete("/v2.1/flavors/{id}", "os_compute_api:os-flavor-manage:delete", flavor::delete),
        post(ACCESS, access, flavor::add_access).action("addTenantAccess"),
        post(ACCESS, access, flavor::remove_access).action("removeTenantAccess"),
        get("/v2.1/flavors/{id}/os-flavor-access", "os_compute_api:os-flavor-access", flavor::access),
        get(SPECS, specs, flavor::specs),
        post(SPECS, add_specs, flavor::add_specs),
        get(SPEC, specs, flavor::spec),
        put(SPEC, add_specs, flavor::put_spec),
        delete(SPEC, add_specs, flavor::delete_spec),
        get("/v2.1/os-keypairs", "os_compute_api:os-keypairs:index", keypair::list),
        post("/v2.1/os-keypairs", "os_compute_api:os-keypairs:create", keypair::create),
        get("/v2.1/os-keypairs/{name}", "os_compute_api:os-keypairs:show", keypair::show),
        delete("/v2.1/os-keypairs/{name}", "os_compute_api:os-keypairs:delete", keypair::delete),
        get("/v2.1/limits", "os_compute_api:limits", quota::limits),
        get(QUOTA, "os_compute_api:os-quota-sets:show", quota::show),
        put(QUOTA, "os_compute_api:os-quota-sets:update", quota::update),
        delete(QUOTA, "os_compute_api:os-quota-sets:delete", quota::delete),
        get(
            "/v2.1/os-quota-sets/{project_id}/defaults",
            "os_compute_api:os-quota-sets:show",
            quota::defaults,
        ),
        get("/v2.1/os-quota-sets/{project_id}/detail", "os_compute_api:os-quota-sets:show", quota::detail),
        get(CLASS, "os_compute_api:os-quota-class-sets:show", quota::class),
        put(CLASS, "os_compute_api:os-quota-class-sets:update", quota::update_class),
        get("/v2.1/os-availability-zone", "os_compute_api:os-availability-zone:list", host::zones),
        get(
            "/v2.1/os-availability-zone/detail",
            "os_compute_api:os-availability-zone:detail",
            host::zones_detail,
        ),
        get("/v2.1/os-aggregates", "os_compute_api:os-aggregates:index", host::aggregates),
        get("/v2.1/os-services", "os_compute_api:os-services:list", host::services),
        put("/v2.1/os-services/{id}", "os_compute_api:os-services:update", host::update_service)
            .since(v(2, 53)),
        delete("/v2.1/os-services/{id}", "os_compute_api:os-services:delete", host::delete_service),
        get("/v2.1/os-hypervisors", hypervisors, host::hypervisors),
        get("/v2.1/os-hypervisors/detail", hypervisors, host::hypervisors_detail),
        get("/v2.1/os-hypervisors/statistics", hypervisors, host::statistics).until(v(2, 87)),
        get("/v2.1/os-hypervisors/{id}", hypervisors, host::hypervisor),
        get("/v2.1/os-hypervisors/{id}/search", hypervisors, host::search).until(v(2, 52)),
        get("/v2.1/os-hypervisors/{id}/servers", hypervisors, host::search).until(v(2, 52)),
        get("/v2.1/os-hypervisors/{id}/uptime", hypervisors, host::hypervisor_uptime).until(v(2, 87)),
        get(GROUPS, see, proxy::list).until(v(2, 35)),
        post(GROUPS, write, proxy::create).until(v(2, 35)),
        get(GROUP, see, proxy::show).until(v(2, 35)),
        put(GROUP, write, proxy::update).until(v(2, 35)),
        delete(GROUP, write, proxy::delete).until(v(2, 35)),
        post("/v2.1/os-security-group-rules", write, proxy::create_rule).until(v(2, 35)),
        delete("/v2.1/os-security-group-rules/{id}", write, proxy::delete_rule).until(v(2, 35)),
    ]
}
