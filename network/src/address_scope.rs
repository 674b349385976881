//! Address scopes: subnet pools whose prefixes never overlap.
//!
//! Deliberately absent: keeping scopes apart in routers. Ours route between all networks that they are plugged into, and
//! translate what leaves by the gateway whatever scope it is of.

use crate::attr::{self, Flag, Meta, Whole, missing, read_only};
use crate::rbac::{self, Action, Kind, Shared};
use crate::resource::{Resource, Wanted};
use crate::subnet_pool;
use api::{Call, Target, View};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{Index, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressScope {
    pub id: Id<AddressScope>,
    pub meta: Meta,
    pub v6: bool,
}

impl IdKind for AddressScope {}

impl Record for AddressScope {
    const KIND: &'static str = "address_scope";
    type Key = Id<AddressScope>;
    const INDEXES: &'static [Index<AddressScope>] = &[];

    fn key(&self) -> Id<AddressScope> {
        self.id
    }
}

impl Shared for AddressScope {
    const RBAC: Kind = Kind::AddressScope;
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    shared: Option<Flag>,
    ip_version: Option<Whole>,
}

impl Resource for AddressScope {
    const ONE: &'static str = "address_scope";
    const MANY: &'static str = "address_scopes";
    const TITLE: &'static str = "Address scope";
    const NOT_FOUND: &'static str = "AddressScopeNotFound";
    const ATTRIBUTES: &'static [&'static str] = &["shared", "ip_version"];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn visible(&self, state: &State, cx: &Context) -> bool {
        cx.sees(self.meta.project) || rbac::shared(state, self.id, cx)
    }

    fn view(&self, state: &State, cx: &Context, view: &mut View) {
        self.meta.owned(self.id, view);
        view.put("name", &self.meta.name);
        view.put("shared", &rbac::shared(state, self.id, cx));
        view.put("ip_version", &if self.v6 { 6 } else { 4 });
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        match attr::privileged(body.shared, verb) {
            true => call.require(&format!("{verb}_address_scope:shared"), &Target::new()),
            false => Ok(()),
        }
    }

    fn create(
        tx: &mut Tx,
        _: &Context,
        project: ProjectId,
        body: &Wanted<AddressScope>,
    ) -> Result<Arc<AddressScope>> {
        let v6 = match body.ip_version.ok_or_else(|| missing("ip_version"))?.0 {
            4 => false,
            6 => true,
            other => {
                let text = format!("Invalid input for ip_version. Reason: '{other}' is not in [4, 6].");
                return Err(Error::invalid(text));
            }
        };
        let mut meta = Meta::new(tx, project);
        meta.apply(&body.meta);
        let id = tx.new_id();
        let scope = tx.put(AddressScope { id, meta, v6 })?;
        rbac::for_everyone(tx, &*scope, Action::AccessAsShared, body.shared.is_some_and(|f| f.0))?;
        Ok(scope)
    }

    fn update(
        tx: &mut Tx,
        _: &Context,
        old: &AddressScope,
        body: &Wanted<AddressScope>,
    ) -> Result<Arc<AddressScope>> {
        if body.ip_version.is_some() {
            return Err(read_only("ip_version"));
        }
        let everyone = rbac::allows(tx, old.id, Action::AccessAsShared, ProjectId::ZERO);
        if everyone && body.shared == Some(Flag(false)) {
            let text = format!(
                "Unable to update address scope {} : Shared address scope can't be unshared.",
                old.id
            );
            return Err(Error::invalid(text).named("AddressScopeUpdateError"));
        }
        let mut scope = old.clone();
        scope.meta.apply(&body.meta);
        scope.meta.touch(tx);
        let scope = tx.put(scope)?;
        if body.shared == Some(Flag(true)) {
            rbac::for_everyone(tx, &*scope, Action::AccessAsShared, true)?;
        }
        Ok(scope)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &AddressScope) -> Result<()> {
        if tx.by(&subnet_pool::BY_SCOPE, old.id).next().is_some() {
            let text = format!(
                "Unable to complete operation on address scope {}. There are one or more subnet pools in use on the address scope.",
                old.id
            );
            return Err(Error::conflict(text).named("AddressScopeInUse"));
        }
        rbac::forget(tx, old.id);
        tx.delete::<AddressScope>(&old.id);
        Ok(())
    }
}
