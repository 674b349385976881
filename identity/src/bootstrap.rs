//! The first start: the domain Default, roles, the administrator, the catalogue. Running it again changes nothing.

use crate::assignment::{self, Actor, Grant, Reach, Target};
use crate::catalog::{
    self, Endpoint, EndpointFields, Interface, Region, RegionFields, Service, ServiceFields,
};
use crate::domain::{self, Domain, DomainFields};
use crate::project::{self, NewProject, ProjectFields};
use crate::role::{self, RoleFields};
use crate::token::{self, SigningKey};
use crate::user::{self, Password, UserFields};
use crate::wire::{Map, Name};
use base::{Context, DomainId, Id, ProjectId, Result, RoleId, Secret, UserId};
use store::Tx;

/// What the first start is told.
pub struct Bootstrap {
    pub admin_password_hash: Secret,
    pub region: String,
    /// Type, name, URL: relative ones follow the address that a client uses.
    pub endpoints: Vec<(String, String, String)>,
    /// Seals tokens; used only where there is none yet.
    pub signing_key: Secret,
}

/// The services of the control plane itself.
const ENDPOINTS: [(&str, &str, &str); 5] = [
    ("identity", "keystone", "/identity/v3"),
    ("compute", "nova", "/compute/v2.1"),
    ("network", "neutron", "/network"),
    ("image", "glance", "/image"),
    ("placement", "placement", "/placement"),
];

impl Bootstrap {
    /// The usual region and services, with a fresh key.
    pub fn new(admin_password_hash: Secret) -> Bootstrap {
        let endpoints = ENDPOINTS.iter().map(|(t, n, u)| (t.to_string(), n.to_string(), u.to_string()));
        let (region, signing_key) = ("RegionOne".into(), token::new_key());
        Bootstrap { admin_password_hash, region, endpoints: endpoints.collect(), signing_key }
    }
}

/// Each role of the first start implies the one after it; `service` stands alone.
const ROLES: [&str; 4] = ["admin", "manager", "member", "reader"];

/// Makes what is not there yet. An administrator that exists keeps its password.
pub fn bootstrap(tx: &mut Tx, new: &Bootstrap) -> Result<()> {
    let cx = Context::system("bootstrap");
    if tx.count::<SigningKey>() == 0 {
        token::rotate(tx, new.signing_key.clone())?;
    }
    let home = DomainId::ZERO;
    if tx.get::<Domain>(&home).is_none() {
        domain::create(tx, &cx, Some(home), domain_fields()?)?;
    }
    let roles = ROLES.iter().map(|name| role(tx, &cx, name)).collect::<Result<Vec<_>>>()?;
    for pair in roles.windows(2) {
        if role::implies(tx, pair[0], pair[1]).is_err() {
            role::imply(tx, &cx, pair[0], pair[1])?;
        }
    }
    role(tx, &cx, "service")?;
    let project = project(tx, &cx, "admin", "Bootstrap project for initializing the cloud.")?;
    self::project(tx, &cx, "service", "The cloud's own services.")?;
    let admin = admin(tx, &cx, new)?;
    for target in [Target::Project(project), Target::Domain(home), Target::System] {
        let grant = Grant { actor: Actor::User(admin), target, role: roles[0], reach: Reach::Here };
        assignment::create(tx, &cx, grant)?;
    }
    if tx.get::<Region>(&new.region).is_none() {
        let region = Region::new(new.region.clone(), RegionFields::default());
        catalog::create_region(tx, &cx, region)?;
    }
    new.endpoints.iter().try_for_each(|(kind, name, url)| service(tx, &cx, &new.region, kind, name, url))
}

fn domain_fields() -> Result<DomainFields> {
    Ok(DomainFields {
        name: Name::parse("Default")?,
        description: "The default domain".into(),
        enabled: true,
        tags: Vec::new(),
        options: Map::new(),
        extra: Map::new(),
    })
}

fn role(tx: &mut Tx, cx: &Context, name: &str) -> Result<RoleId> {
    if let Some(role) = role::named(tx, name) {
        return Ok(role.id);
    }
    let options = Map::from_iter([("immutable".to_string(), true.into())]);
    let fields = RoleFields { name: Name::parse(name)?, description: None, options, extra: Map::new() };
    Ok(role::create(tx, cx, None, fields)?.id)
}

fn project(tx: &mut Tx, cx: &Context, name: &str, description: &str) -> Result<ProjectId> {
    if let Some(project) = project::named(tx, DomainId::ZERO, name) {
        return Ok(project.id);
    }
    let fields = ProjectFields {
        name: Name::parse(name)?,
        description: description.into(),
        enabled: true,
        tags: Vec::new(),
        options: Map::new(),
        extra: Map::new(),
    };
    Ok(project::create(tx, cx, NewProject { domain: DomainId::ZERO, parent: None, fields })?.id)
}

fn admin(tx: &mut Tx, cx: &Context, new: &Bootstrap) -> Result<UserId> {
    if let Some(user) = user::named(tx, DomainId::ZERO, "admin") {
        return Ok(user.id);
    }
    let fields = UserFields {
        name: Name::parse("admin")?,
        enabled: true,
        default_project_id: None,
        options: Map::new(),
        extra: Map::new(),
    };
    let (hash, created) = (new.admin_password_hash.clone(), tx.now());
    let password = Password { hash, created, expires: None, by_admin: true };
    Ok(user::create(tx, cx, DomainId::ZERO, fields, Some(password))?.id)
}

/// The service of a type with its three endpoints, unless one of the type is there.
fn service(tx: &mut Tx, cx: &Context, region: &str, kind: &str, name: &str, url: &str) -> Result<()> {
    if tx.all::<Service>().any(|s| s.fields.kind == kind) {
        return Ok(());
    }
    let fields = ServiceFields { kind: kind.into(), name: name.into(), enabled: true, extra: Map::new() };
    let service = catalog::create_service(tx, cx, fields)?.id;
    for interface in [Interface::Public, Interface::Internal, Interface::Admin] {
        endpoint(tx, cx, region, service, interface, url)?;
    }
    Ok(())
}

fn endpoint(
    tx: &mut Tx,
    cx: &Context,
    region: &str,
    service_id: Id<Service>,
    interface: Interface,
    url: &str,
) -> Result<Id<Endpoint>> {
    let (region_id, url) = (Some(region.to_string()), url.to_string());
    let fields = EndpointFields { service_id, interface, region_id, url, enabled: true, extra: Map::new() };
    Ok(catalog::create_endpoint(tx, cx, fields)?.id)
}
