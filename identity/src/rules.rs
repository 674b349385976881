//! The policy rules of Identity, in Keystone's names.
//!
//! An administrator is one in any scope. A reader of the system sees everything, a reader of a domain what is in it; a
//! manager of a domain manages its users, groups, projects and the grants of roles not above its own.

use api::Rule;

macro_rules! rules {
    ($($name:literal $check:expr),* $(,)?) => { &[$(Rule { name: $name, check: $check, about: "" }),*] };
}

const ADMIN: &str = "rule:admin_required";
const READ: &str = "rule:admin_required or rule:system_reader";
const ANYONE: &str = "@";
const READ_DOMAIN: &str =
    "rule:admin_required or rule:system_reader or (role:reader and domain_id:%(target.domain_id)s)";
const READ_USER: &str = "rule:admin_required or rule:system_reader or (role:reader and domain_id:%(target.user.domain_id)s) or user_id:%(target.user.id)s";
const READ_GROUP: &str =
    "rule:admin_required or rule:system_reader or (role:reader and domain_id:%(target.group.domain_id)s)";
const READ_PROJECT: &str = "rule:admin_required or rule:system_reader or (role:reader and domain_id:%(target.project.domain_id)s) or project_id:%(target.project.id)s";
const MANAGE_USER: &str = "rule:admin_required or (role:manager and domain_id:%(target.user.domain_id)s)";
const MANAGE_GROUP: &str = "rule:admin_required or (role:manager and domain_id:%(target.group.domain_id)s)";
const MANAGE_MEMBER: &str = "rule:admin_required or (role:manager and domain_id:%(target.group.domain_id)s and domain_id:%(target.user.domain_id)s)";
const MANAGE_PROJECT: &str =
    "rule:admin_required or (role:manager and domain_id:%(target.project.domain_id)s)";
const READ_GRANT: &str =
    "rule:admin_required or rule:system_reader or (role:reader and rule:grant_in_own_domain)";
const CHANGE_GRANT: &str =
    "rule:admin_required or (role:manager and rule:grant_in_own_domain and rule:domain_managed_target_role)";
const OWN_CREDENTIAL: &str = "rule:admin_required or user_id:%(target.credential.user_id)s";
const READ_CREDENTIAL: &str =
    "rule:admin_required or rule:system_reader or user_id:%(target.credential.user_id)s";
const PARTY_OF_TRUST: &str = "rule:admin_required or rule:system_reader or user_id:%(target.trust.trustor_user_id)s or user_id:%(target.trust.trustee_user_id)s";

pub const BASE: &[Rule] = rules! {
    "admin_required" "role:admin",
    "service_role" "role:service",
    "service_or_admin" "rule:admin_required or rule:service_role",
    "system_reader" "role:reader and system_scope:all",
    "owner" "user_id:%(user_id)s",
    "admin_or_owner" "rule:admin_required or rule:owner",
    "token_subject" "user_id:%(target.token.user_id)s",
    "domain_managed_target_role" "'true':%(target.role.global)s and ('manager':%(target.role.name)s or 'member':%(target.role.name)s or 'reader':%(target.role.name)s)",
    "grant_in_own_domain" "(domain_id:%(target.user.domain_id)s or domain_id:%(target.group.domain_id)s) and (domain_id:%(target.project.domain_id)s or domain_id:%(target.domain.id)s)",
};

pub const TOKENS: &[Rule] = rules! {
    "identity:validate_token" "rule:admin_required or rule:system_reader or rule:service_role or rule:token_subject",
    "identity:check_token" "rule:admin_required or rule:system_reader or rule:service_role or rule:token_subject",
    "identity:revoke_token" "rule:admin_required or rule:token_subject",
    "identity:get_auth_catalog" ANYONE,
    "identity:get_auth_projects" ANYONE,
    "identity:get_auth_domains" ANYONE,
    "identity:get_auth_system" ANYONE,
};

pub const PEOPLE: &[Rule] = rules! {
    "identity:list_domains" "rule:admin_required or rule:system_reader or (role:reader and domain_id:%(target.domain.id)s)",
    "identity:get_domain" "rule:admin_required or rule:system_reader or domain_id:%(target.domain.id)s or project_domain_id:%(target.domain.id)s",
    "identity:create_domain" ADMIN,
    "identity:update_domain" ADMIN,
    "identity:delete_domain" ADMIN,
    "identity:list_projects" READ_DOMAIN,
    "identity:list_user_projects" READ_USER,
    "identity:get_project" READ_PROJECT,
    "identity:create_project" MANAGE_PROJECT,
    "identity:update_project" MANAGE_PROJECT,
    "identity:delete_project" MANAGE_PROJECT,
    "identity:list_project_tags" READ_PROJECT,
    "identity:get_project_tag" READ_PROJECT,
    "identity:update_project_tags" MANAGE_PROJECT,
    "identity:create_project_tag" MANAGE_PROJECT,
    "identity:delete_project_tags" MANAGE_PROJECT,
    "identity:delete_project_tag" MANAGE_PROJECT,
    "identity:list_users" READ_DOMAIN,
    "identity:get_user" READ_USER,
    "identity:create_user" MANAGE_USER,
    "identity:update_user" MANAGE_USER,
    "identity:delete_user" MANAGE_USER,
    "identity:list_groups" READ_GROUP,
    "identity:list_groups_for_user" READ_USER,
    "identity:get_group" READ_GROUP,
    "identity:create_group" MANAGE_GROUP,
    "identity:update_group" MANAGE_GROUP,
    "identity:delete_group" MANAGE_GROUP,
    "identity:list_users_in_group" READ_GROUP,
    "identity:check_user_in_group" "rule:admin_required or rule:system_reader or (role:reader and domain_id:%(target.group.domain_id)s and domain_id:%(target.user.domain_id)s)",
    "identity:add_user_to_group" MANAGE_MEMBER,
    "identity:remove_user_from_group" MANAGE_MEMBER,
};

pub const ROLES: &[Rule] = rules! {
    "identity:list_roles" "rule:admin_required or rule:system_reader or role:manager",
    "identity:get_role" "rule:admin_required or rule:system_reader or (role:manager and rule:domain_managed_target_role)",
    "identity:create_role" ADMIN,
    "identity:update_role" ADMIN,
    "identity:delete_role" ADMIN,
    "identity:list_implied_roles" READ,
    "identity:get_implied_role" READ,
    "identity:check_implied_role" READ,
    "identity:create_implied_role" ADMIN,
    "identity:delete_implied_role" ADMIN,
    "identity:list_role_inference_rules" READ,
    "identity:list_role_assignments" READ_DOMAIN,
    "identity:list_grants" READ_GRANT,
    "identity:check_grant" READ_GRANT,
    "identity:create_grant" CHANGE_GRANT,
    "identity:revoke_grant" CHANGE_GRANT,
    "identity:list_system_grants_for_user" READ,
    "identity:check_system_grant_for_user" READ,
    "identity:create_system_grant_for_user" ADMIN,
    "identity:revoke_system_grant_for_user" ADMIN,
    "identity:list_system_grants_for_group" READ,
    "identity:check_system_grant_for_group" READ,
    "identity:create_system_grant_for_group" ADMIN,
    "identity:revoke_system_grant_for_group" ADMIN,
};

pub const CATALOG: &[Rule] = rules! {
    "identity:list_regions" ANYONE,
    "identity:get_region" ANYONE,
    "identity:create_region" ADMIN,
    "identity:update_region" ADMIN,
    "identity:delete_region" ADMIN,
    "identity:list_services" READ,
    "identity:get_service" READ,
    "identity:create_service" ADMIN,
    "identity:update_service" ADMIN,
    "identity:delete_service" ADMIN,
    "identity:list_endpoints" READ,
    "identity:get_endpoint" READ,
    "identity:create_endpoint" ADMIN,
    "identity:update_endpoint" ADMIN,
    "identity:delete_endpoint" ADMIN,
};

pub const SECRETS: &[Rule] = rules! {
    "identity:list_credentials" READ_CREDENTIAL,
    "identity:get_credential" READ_CREDENTIAL,
    "identity:create_credential" OWN_CREDENTIAL,
    "identity:update_credential" OWN_CREDENTIAL,
    "identity:delete_credential" OWN_CREDENTIAL,
    "identity:ec2_list_credentials" "rule:admin_required or rule:system_reader or rule:owner",
    "identity:ec2_get_credential" READ_CREDENTIAL,
    "identity:ec2_create_credential" "rule:admin_required or (role:member and user_id:%(target.credential.user_id)s)",
    "identity:ec2_delete_credential" "rule:admin_required or (role:member and user_id:%(target.credential.user_id)s)",
    "identity:list_trusts" READ,
    "identity:list_trusts_for_trustor" PARTY_OF_TRUST,
    "identity:create_trust" "user_id:%(target.trust.trustor_user_id)s",
    "identity:get_trust" PARTY_OF_TRUST,
    "identity:delete_trust" "rule:admin_required or user_id:%(target.trust.trustor_user_id)s",
    "identity:list_roles_for_trust" PARTY_OF_TRUST,
    "identity:get_role_for_trust" PARTY_OF_TRUST,
    "identity:list_application_credentials" "rule:admin_required or rule:system_reader or rule:owner",
    "identity:get_application_credential" "rule:admin_required or rule:system_reader or rule:owner",
    "identity:create_application_credential" "rule:owner",
    "identity:delete_application_credential" "rule:admin_or_owner",
    "identity:list_access_rules" "rule:system_reader or user_id:%(target.user.id)s",
    "identity:get_access_rule" "rule:system_reader or user_id:%(target.user.id)s",
    "identity:delete_access_rule" "(role:admin and system_scope:all) or user_id:%(target.user.id)s",
};

pub const EXTENSIONS: &[Rule] = rules! {
    "identity:get_domain_config" READ,
    "identity:get_domain_config_default" READ,
    "identity:create_domain_config" ADMIN,
    "identity:update_domain_config" ADMIN,
    "identity:delete_domain_config" ADMIN,
    "identity:list_policies" READ,
    "identity:get_policy" READ,
    "identity:create_policy" ADMIN,
    "identity:update_policy" ADMIN,
    "identity:delete_policy" ADMIN,
    "identity:list_consumers" READ,
    "identity:get_consumer" READ,
    "identity:create_consumer" ADMIN,
    "identity:update_consumer" ADMIN,
    "identity:delete_consumer" ADMIN,
    "identity:list_endpoint_groups" READ,
    "identity:get_endpoint_group" READ,
    "identity:create_endpoint_group" ADMIN,
    "identity:update_endpoint_group" ADMIN,
    "identity:delete_endpoint_group" ADMIN,
    "identity:list_projects_associated_with_endpoint_group" READ,
    "identity:list_endpoints_associated_with_endpoint_group" READ,
    "identity:get_endpoint_group_in_project" READ,
    "identity:list_endpoint_groups_for_project" READ,
    "identity:add_endpoint_group_to_project" ADMIN,
    "identity:remove_endpoint_group_from_project" ADMIN,
    "identity:list_projects_for_endpoint" READ,
    "identity:add_endpoint_to_project" ADMIN,
    "identity:check_endpoint_in_project" READ,
    "identity:list_endpoints_for_project" READ,
    "identity:remove_endpoint_from_project" ADMIN,
    "identity:get_limit_model" ANYONE,
    "identity:list_registered_limits" ANYONE,
    "identity:get_registered_limit" ANYONE,
    "identity:create_registered_limits" ADMIN,
    "identity:update_registered_limit" ADMIN,
    "identity:delete_registered_limit" ADMIN,
    "identity:list_limits" ANYONE,
    "identity:get_limit" "rule:admin_required or rule:system_reader or domain_id:%(target.limit.domain_id)s or project_id:%(target.limit.project_id)s",
    "identity:create_limits" ADMIN,
    "identity:update_limit" ADMIN,
    "identity:delete_limit" ADMIN,
};
