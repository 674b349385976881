//! RBAC policies: who besides its owner may use a network, subnet pool, address scope, security group or address group.
//!
//! They are the only record of sharing: `shared` and `router:external` of a resource are views of its policies, and writing
//! them writes a policy for everyone. A policy goes only when nobody depends on it.
//!
//! An external network is the uplink of nodes, so only an administrator grants `access_as_external`.

use crate::address_group::{self, AddressGroup};
use crate::address_scope::AddressScope;
use crate::attr::{Meta, input, missing, read_only};
use crate::network::Network;
use crate::port;
use crate::resource::{self, Resource, Wanted};
use crate::router::{self};
use crate::security_group::SecurityGroup;
use crate::subnet;
use crate::subnet_pool::{self, SubnetPool};
use crate::{RBAC_POLICY, floating_ip};
use api::{Call, Target as Aim, View};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use identity::limit;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// The id of any of the things that can be shared.
#[derive(Debug)]
pub enum Object {}
impl IdKind for Object {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RbacPolicy {
    pub id: Id<RbacPolicy>,
    pub meta: Meta,
    pub kind: Kind,
    pub object: Id<Object>,
    pub action: Action,
    /// None: every project.
    pub target: Option<ProjectId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Network,
    #[serde(rename = "subnetpool")]
    SubnetPool,
    AddressScope,
    SecurityGroup,
    AddressGroup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    AccessAsShared,
    AccessAsExternal,
}

impl IdKind for RbacPolicy {}

fn external(action: Action) -> bool {
    action == Action::AccessAsExternal
}

const BY_OBJECT: Index<RbacPolicy> =
    Index::many("object", |p, keys| keys.push((p.object, external(p.action)).key()));
const SAME: Index<RbacPolicy> =
    Index::unique("same", |p, keys| keys.push((p.object, external(p.action), p.target).key()));

impl Record for RbacPolicy {
    const KIND: &'static str = "rbac_policy";
    type Key = Id<RbacPolicy>;
    const INDEXES: &'static [Index<RbacPolicy>] = &[BY_OBJECT, SAME];

    fn key(&self) -> Id<RbacPolicy> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, RBAC_POLICY.name, 1);
    }
}

/// A resource that can be shared.
pub trait Shared: Resource {
    const RBAC: Kind;
}

fn object<R: Shared>(id: Id<R>) -> Id<Object> {
    Id::from_uuid(id.uuid())
}

/// Whether `project` may do `action` with something that may be another's.
pub fn allows<R: Shared>(state: &State, id: Id<R>, action: Action, project: ProjectId) -> bool {
    let mut policies = state.by(&BY_OBJECT, (object(id), external(action)));
    policies.any(|p| p.target.is_none_or(|target| target == project))
}

/// Whether a resource is shared with the caller's project.
pub fn shared<R: Shared>(state: &State, id: Id<R>, cx: &Context) -> bool {
    allows(state, id, Action::AccessAsShared, cx.project())
}

/// Whether a network is external: to anybody.
pub fn is_external(state: &State, network: Id<Network>) -> bool {
    state.one(&BY_OBJECT, (object(network), true)).is_some()
}

/// Grants `action` to everyone, or takes that grant back.
///
/// Errors: `Conflict` when another project depends on it.
pub fn for_everyone<R: Shared>(tx: &mut Tx, of: &R, action: Action, wanted: bool) -> Result<()> {
    let object = object(of.key());
    let found = tx.one(&SAME, (object, external(action), None::<ProjectId>)).cloned();
    match (found, wanted) {
        (Some(_), true) | (None, false) => Ok(()),
        (Some(policy), false) => {
            check_use(tx, &policy, None)?;
            tx.delete::<RbacPolicy>(&policy.id);
            Ok(())
        }
        (None, true) => {
            let (id, meta) = (tx.new_id(), Meta::new(tx, of.meta().project));
            tx.put(RbacPolicy { id, meta, kind: R::RBAC, object, action, target: None })?;
            Ok(())
        }
    }
}

/// A network is no longer external: all its policies that made it so go.
///
/// Errors: `Conflict` named `ExternalNetworkInUse` while a router has its gateway there.
pub fn not_external(tx: &mut Tx, network: Id<Network>) -> Result<()> {
    if tx.by(&router::BY_GATEWAY, network).next().is_some() {
        let text = format!(
            "External network {network} cannot be updated to be made non-external, since it has existing gateway ports."
        );
        return Err(Error::conflict(text).named("ExternalNetworkInUse"));
    }
    forget_action(tx, object(network), true);
    Ok(())
}

/// The policies of something that is removed go with it.
pub fn forget<R: Shared>(tx: &mut Tx, id: Id<R>) {
    [false, true].iter().for_each(|external| forget_action(tx, object(id), *external));
}

fn forget_action(tx: &mut Tx, object: Id<Object>, external: bool) {
    let policies: Vec<_> = tx.by(&BY_OBJECT, (object, external)).map(|p| p.id).collect();
    policies.iter().for_each(|id| drop(tx.delete::<RbacPolicy>(id)));
}

/// The projects that use something by a grant.
fn users(state: &State, policy: &RbacPolicy) -> BTreeSet<ProjectId> {
    let uuid = policy.object.uuid();
    let network: Id<Network> = Id::from_uuid(uuid);
    match (policy.kind, policy.action) {
        (Kind::Network, Action::AccessAsShared) => {
            state.by(&port::BY_NETWORK, network).map(|p| p.meta.project).collect()
        }
        (Kind::Network, Action::AccessAsExternal) => {
            let routers = state.by(&router::BY_GATEWAY, network).map(|r| r.meta.project);
            let floating = state.by(&floating_ip::BY_NETWORK, network).map(|f| f.meta.project);
            routers.chain(floating).collect()
        }
        (Kind::SubnetPool, _) => {
            state.by(&subnet::BY_POOL, Id::<SubnetPool>::from_uuid(uuid)).map(|s| s.meta.project).collect()
        }
        (Kind::AddressScope, _) => state
            .by(&subnet_pool::BY_SCOPE, Id::<AddressScope>::from_uuid(uuid))
            .map(|p| p.meta.project)
            .collect(),
        (Kind::SecurityGroup, _) => {
            state.by(&port::BY_GROUP, Id::<SecurityGroup>::from_uuid(uuid)).map(|p| p.meta.project).collect()
        }
        (Kind::AddressGroup, _) => {
            address_group::rules_with(state, Id::from_uuid(uuid)).map(|r| r.meta.project).collect()
        }
    }
}

/// Whether everybody who depends on a policy may still do without it; `instead` is what its target becomes.
fn check_use(state: &State, policy: &RbacPolicy, instead: Option<Option<ProjectId>>) -> Result<()> {
    let others = state.by(&BY_OBJECT, (policy.object, external(policy.action))).filter(|p| p.id != policy.id);
    let left: Vec<Option<ProjectId>> = others.map(|p| p.target).chain(instead).collect();
    let in_use = |why: &str| {
        let (object, text) = (policy.object, "cannot be removed because other objects depend on it");
        Err(Error::conflict(format!("RBAC policy on object {object} {text}.\nDetails: {why}"))
            .named("RbacPolicyInUse"))
    };
    let network = state.get::<Network>(&Id::from_uuid(policy.object.uuid()));
    if external(policy.action) && policy.target.is_none() && network.is_some_and(|n| n.default) {
        return in_use("Default external networks must be shared to everyone.");
    }
    let covered = |p: &ProjectId| left.iter().any(|t| t.is_none_or(|t| t == *p));
    match users(state, policy).iter().find(|p| !policy.owned_by(**p) && !covered(p)) {
        Some(project) => in_use(&format!("Project {project} uses it.")),
        None => Ok(()),
    }
}

impl RbacPolicy {
    fn owned_by(&self, project: ProjectId) -> bool {
        project == ProjectId::ZERO || project == self.meta.project
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    object_type: Option<String>,
    object_id: Option<String>,
    action: Option<String>,
    target_tenant: Option<String>,
}

impl Resource for RbacPolicy {
    const ONE: &'static str = "rbac_policy";
    const MANY: &'static str = "rbac_policies";
    const TITLE: &'static str = "RBAC policy";
    const NOT_FOUND: &'static str = "RbacPolicyNotFound";
    const NAMED: bool = false;
    const ATTRIBUTES: &'static [&'static str] = &["object_type", "object_id", "action", "target_tenant"];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, _: &State, _: &Context, view: &mut View) {
        self.meta.owned(self.id, view);
        let target = self.target.map_or_else(|| "*".to_string(), |t| t.to_string());
        view.put("object_type", &self.kind);
        view.put("object_id", &self.object);
        view.put("action", &self.action);
        view.put("target_tenant", &target);
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        if body.target_tenant.as_deref() == Some("*") {
            call.require(&format!("{verb}_rbac_policy:target_tenant"), &Aim::new())?;
        }
        match body.action.as_deref() {
            Some("access_as_external") => call.require("create_rbac_policy:access_as_external", &Aim::new()),
            Some(_) | None => Ok(()),
        }
    }

    fn create(
        tx: &mut Tx,
        cx: &Context,
        project: ProjectId,
        body: &Wanted<RbacPolicy>,
    ) -> Result<Arc<RbacPolicy>> {
        limit::claim(tx, project, &RBAC_POLICY, 1)?;
        let kind = kind(body.object_type.as_deref().ok_or_else(|| missing("object_type"))?)?;
        let action = action(kind, body.action.as_deref().ok_or_else(|| missing("action"))?)?;
        let object = body.object_id.as_deref().ok_or_else(|| missing("object_id"))?;
        let object = match kind {
            Kind::Network => owned::<Network>(tx, cx, object)?,
            Kind::SubnetPool => owned::<SubnetPool>(tx, cx, object)?,
            Kind::AddressScope => owned::<AddressScope>(tx, cx, object)?,
            Kind::SecurityGroup => owned::<SecurityGroup>(tx, cx, object)?,
            Kind::AddressGroup => owned::<AddressGroup>(tx, cx, object)?,
        };
        let target = target(body.target_tenant.as_deref().ok_or_else(|| missing("target_tenant"))?)?;
        let (id, meta) = (tx.new_id(), Meta::new(tx, project));
        tx.put(RbacPolicy { id, meta, kind, object, action, target }).map_err(|_| duplicate())
    }

    fn update(
        tx: &mut Tx,
        _: &Context,
        old: &RbacPolicy,
        body: &Wanted<RbacPolicy>,
    ) -> Result<Arc<RbacPolicy>> {
        let fixed = [
            ("object_type", body.object_type.is_some()),
            ("object_id", body.object_id.is_some()),
            ("action", body.action.is_some()),
        ];
        if let Some((attribute, _)) = fixed.iter().find(|(_, used)| *used) {
            return Err(read_only(attribute));
        }
        let mut policy = old.clone();
        if let Some(text) = &body.target_tenant {
            policy.target = target(text)?;
        }
        if policy.target != old.target {
            check_use(tx, old, Some(policy.target))?;
            policy.meta.touch(tx);
        }
        tx.put(policy).map_err(|_| duplicate())
    }

    fn delete(tx: &mut Tx, _: &Context, old: &RbacPolicy) -> Result<()> {
        check_use(tx, old, None)?;
        tx.delete::<RbacPolicy>(&old.id);
        Ok(())
    }
}

fn duplicate() -> Error {
    Error::conflict("An RBAC policy already exists with those values.").named("DuplicateRbacPolicy")
}

fn kind(text: &str) -> Result<Kind> {
    let kind = serde_json::from_value(json!(text.trim().to_ascii_lowercase()));
    kind.map_err(|_| input(format!("'{}' is not a valid RBAC object type", text.escape_default())))
}

fn action(kind: Kind, text: &str) -> Result<Action> {
    match (kind, text) {
        (_, "access_as_shared") => Ok(Action::AccessAsShared),
        (Kind::Network, "access_as_external") => Ok(Action::AccessAsExternal),
        _ => {
            Err(input(format!("Invalid action '{}' for object type {}", text.escape_default(), json!(kind))))
        }
    }
}

fn target(text: &str) -> Result<Option<ProjectId>> {
    if text == "*" {
        return Ok(None);
    }
    let bad = |_| {
        input(format!("'{}' is not a valid target project ID; expected a UUID or '*'", text.escape_default()))
    };
    text.parse().map(Some).map_err(bad)
}

/// The object of a policy, which its owner alone shares.
fn owned<R: Shared>(tx: &Tx, cx: &Context, id: &str) -> Result<Id<Object>> {
    let id = id.parse().map_err(|_| resource::not_found::<R>(id))?;
    let found = resource::get::<R>(tx, cx, id)?;
    match cx.sees(found.meta().project) {
        true => Ok(object(id)),
        false => Err(input("Only admins can manipulate policies on objects they do not own")),
    }
}
