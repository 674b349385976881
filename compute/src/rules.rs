//! Policy rules in Nova's names, with the secure defaults.

use api::Rule;

const ADMIN: &str = "role:admin";
const READER: &str = "role:admin or (role:reader and project_id:%(project_id)s)";
const MEMBER: &str = "role:admin or (role:member and project_id:%(project_id)s)";
/// The caller's own things, which no role is needed for.
const OWN: &str = "role:admin or user_id:%(user_id)s";

/// Everyone in a project, whatever the role; of all projects only an administrator. `@` would make everyone one.
const ANYONE: &str = "role:admin or project_id:%(project_id)s";

const fn rule(name: &'static str, check: &'static str, about: &'static str) -> Rule {
    Rule { name, check, about }
}

pub const RULES: &[Rule] = &[
    rule("os_compute_api:servers:index", READER, "List servers"),
    rule("os_compute_api:servers:detail", READER, "List servers with details"),
    rule("os_compute_api:servers:show", READER, "Show a server"),
    rule("os_compute_api:servers:create", MEMBER, "Create a server"),
    rule("os_compute_api:servers:create:forced_host", ADMIN, "Create a server on a chosen host"),
    rule("compute:servers:create:requested_destination", ADMIN, "Create a server on a chosen host"),
    rule("os_compute_api:servers:update", MEMBER, "Update a server"),
    rule("os_compute_api:servers:delete", MEMBER, "Delete a server"),
    rule("os_compute_api:servers:start", MEMBER, "Start a server"),
    rule("os_compute_api:servers:stop", MEMBER, "Stop a server"),
    rule("os_compute_api:servers:reboot", MEMBER, "Reboot a server"),
    rule("os_compute_api:server-metadata:index", READER, "List metadata"),
    rule("os_compute_api:server-metadata:update_all", MEMBER, "Write metadata"),
    rule("os_compute_api:os-server-tags:index", READER, "List tags"),
    rule("os_compute_api:os-server-tags:update_all", MEMBER, "Write tags"),
    rule("os_compute_api:os-multinic:add", MEMBER, "Add a fixed IP"),
    rule("os_compute_api:os-multinic:remove", MEMBER, "Remove a fixed IP"),
    rule("os_compute_api:os-security-groups:add", MEMBER, "Add a security group to a server"),
    rule("os_compute_api:os-security-groups:remove", MEMBER, "Remove a security group from a server"),
    rule("os_compute_api:os-security-groups:list", READER, "List the security groups of a server"),
    rule("os_compute_api:os-security-groups:get", READER, "See security groups (until 2.35)"),
    rule("os_compute_api:os-security-groups:create", MEMBER, "Write security groups (until 2.35)"),
    rule("os_compute_api:os-floating-ips:add", MEMBER, "Associate a floating IP (until 2.43)"),
    rule("os_compute_api:os-console-output", MEMBER, "Read the console"),
    rule("os_compute_api:os-lock-server:lock", MEMBER, "Lock a server"),
    rule("os_compute_api:os-lock-server:unlock", MEMBER, "Unlock a server"),
    rule("os_compute_api:os-admin-actions:reset_state", ADMIN, "Reset the state of a server"),
    rule("os_compute_api:ips:index", READER, "List addresses of a server"),
    rule("os_compute_api:os-attach-interfaces:list", READER, "List interfaces"),
    rule("os_compute_api:os-attach-interfaces:create", MEMBER, "Attach an interface"),
    rule("os_compute_api:os-attach-interfaces:delete", MEMBER, "Detach an interface"),
    rule("os_compute_api:os-server-password:show", READER, "Read the password that a guest posted"),
    rule("os_compute_api:os-server-password:clear", MEMBER, "Forget the password that a guest posted"),
    rule("os_compute_api:flavors", ANYONE, "See flavors"),
    rule("os_compute_api:os-flavor-manage:create", ADMIN, "Create a flavor"),
    rule("os_compute_api:os-flavor-manage:update", ADMIN, "Update a flavor"),
    rule("os_compute_api:os-flavor-manage:delete", ADMIN, "Delete a flavor"),
    rule("os_compute_api:os-flavor-access", ADMIN, "See who may use a flavor"),
    rule("os_compute_api:os-flavor-access:add_tenant_access", ADMIN, "Let a project use a flavor"),
    rule("os_compute_api:os-flavor-extra-specs:index", READER, "See extra specs"),
    rule("os_compute_api:os-flavor-extra-specs:create", ADMIN, "Write extra specs"),
    rule("os_compute_api:os-aggregates:index", ADMIN, "List aggregates"),
    rule("os_compute_api:os-keypairs:index", OWN, "List keypairs"),
    rule("os_compute_api:os-keypairs:show", OWN, "Show a keypair"),
    rule("os_compute_api:os-keypairs:create", OWN, "Create a keypair"),
    rule("os_compute_api:os-keypairs:delete", OWN, "Delete a keypair"),
    rule("os_compute_api:limits", READER, "See limits"),
    rule("os_compute_api:os-quota-sets:show", READER, "See quotas"),
    rule("os_compute_api:os-quota-sets:defaults", "@", "See default quotas"),
    rule("os_compute_api:os-quota-sets:update", ADMIN, "Set quotas"),
    rule("os_compute_api:os-quota-sets:delete", ADMIN, "Reset quotas"),
    rule("os_compute_api:os-quota-class-sets:show", ADMIN, "See default quotas"),
    rule("os_compute_api:os-quota-class-sets:update", ADMIN, "Set default quotas"),
    rule("os_compute_api:os-availability-zone:list", "@", "List zones"),
    rule("os_compute_api:os-availability-zone:detail", ADMIN, "List zones with their hosts"),
    rule("os_compute_api:os-hypervisors:list", ADMIN, "See hypervisors"),
    rule("os_compute_api:os-services:list", ADMIN, "List services"),
    rule("os_compute_api:os-services:update", ADMIN, "Enable, disable, force down"),
    rule("os_compute_api:os-services:delete", ADMIN, "Remove a node"),
    rule("os_compute_api:extensions", "@", "List extensions"),
];

/// Placement's rules, in its names.
pub const PLACEMENT_RULES: &[Rule] = &[
    rule("placement:resource_providers:list", "role:admin or role:service", "List resource providers"),
    rule("placement:resource_providers:show", "role:admin or role:service", "Show a resource provider"),
];
