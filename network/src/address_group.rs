//! Address groups: sets of addresses that rules of security groups name as their remote.
//!
//! Nodes do not know them: a rule with one is as many rules as the group has addresses of its family.
//!
//! Limits: `ADDRESSES_MAX` in one group.

use crate::App;
use crate::attr::{Meta, input, missing, read_only};
use crate::rbac::{self, Kind, Shared};
use crate::resource::{self, Resource, Wanted};
use crate::security_group::{BY_ADDRESS_GROUP, SecurityGroupRule};
use api::{Call, Reply, View};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, Record, State, Tx};

const ADDRESSES_MAX: usize = 1_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressGroup {
    pub id: Id<AddressGroup>,
    pub meta: Meta,
    /// Without host bits.
    pub addresses: BTreeSet<IpNet>,
}

impl IdKind for AddressGroup {}

impl Record for AddressGroup {
    const KIND: &'static str = "address_group";
    type Key = Id<AddressGroup>;
    const INDEXES: &'static [Index<AddressGroup>] = &[];

    fn key(&self) -> Id<AddressGroup> {
        self.id
    }
}

impl Shared for AddressGroup {
    const RBAC: Kind = Kind::AddressGroup;
}

/// The rules whose remote a group is.
pub fn rules_with(state: &State, group: Id<AddressGroup>) -> impl Iterator<Item = &Arc<SecurityGroupRule>> {
    state.by(&BY_ADDRESS_GROUP, group)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    addresses: Option<Vec<String>>,
}

impl Resource for AddressGroup {
    const ONE: &'static str = "address_group";
    const MANY: &'static str = "address_groups";
    const TITLE: &'static str = "Address group";
    const NOT_FOUND: &'static str = "AddressGroupNotFound";
    const ATTRIBUTES: &'static [&'static str] = &["addresses", "shared"];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn visible(&self, state: &State, cx: &Context) -> bool {
        cx.sees(self.meta.project) || rbac::shared(state, self.id, cx)
    }

    fn view(&self, state: &State, cx: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        view.put("addresses", &self.addresses);
        view.put("shared", &rbac::shared(state, self.id, cx));
    }

    fn create(
        tx: &mut Tx,
        _: &Context,
        project: ProjectId,
        body: &Wanted<AddressGroup>,
    ) -> Result<Arc<AddressGroup>> {
        let mut meta = Meta::new(tx, project);
        meta.apply(&body.meta);
        let mut group = AddressGroup { id: tx.new_id(), meta, addresses: BTreeSet::new() };
        group.add(parse(body.addresses.as_deref().unwrap_or_default())?)?;
        Ok(tx.put(group)?)
    }

    fn update(
        tx: &mut Tx,
        _: &Context,
        old: &AddressGroup,
        body: &Wanted<AddressGroup>,
    ) -> Result<Arc<AddressGroup>> {
        if body.addresses.is_some() {
            return Err(read_only("addresses"));
        }
        let mut group = old.clone();
        group.meta.apply(&body.meta);
        group.meta.touch(tx);
        Ok(tx.put(group)?)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &AddressGroup) -> Result<()> {
        if rules_with(tx, old.id).next().is_some() {
            let text = format!("Address group {} is in use on one or more security group rules.", old.id);
            return Err(Error::conflict(text).named("AddressGroupInUse"));
        }
        rbac::forget(tx, old.id);
        tx.delete::<AddressGroup>(&old.id);
        Ok(())
    }
}

impl AddressGroup {
    fn add(&mut self, new: BTreeSet<IpNet>) -> Result<()> {
        if let Some(there) = new.iter().find(|a| self.addresses.contains(a)) {
            let text = format!("Addresses {there} already exist in the address group {}.", self.id);
            return Err(Error::invalid(text).named("AddressesAlreadyExist"));
        }
        self.addresses.extend(new);
        match self.addresses.len() <= ADDRESSES_MAX {
            true => Ok(()),
            false => Err(input(format!("an address group has at most {ADDRESSES_MAX} addresses"))),
        }
    }

    fn remove(&mut self, old: BTreeSet<IpNet>) -> Result<()> {
        if let Some(absent) = old.iter().find(|a| !self.addresses.contains(a)) {
            let text = format!("Addresses {absent} not found in the address group {}.", self.id);
            return Err(Error::not_found(text).named("AddressesNotFound"));
        }
        self.addresses.retain(|a| !old.contains(a));
        Ok(())
    }
}

fn parse(texts: &[String]) -> Result<BTreeSet<IpNet>> {
    let one = |text: &String| {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        net.map(|net| net.trunc()).ok_or_else(|| {
            let text = text.escape_default();
            Error::invalid(format!("Invalid input for addresses. Reason: '{text}' is not a valid IP subnet."))
        })
    };
    texts.iter().map(one).collect()
}

async fn change(
    app: App,
    call: Call,
    change: fn(&mut AddressGroup, BTreeSet<IpNet>) -> Result<()>,
) -> Result<Reply> {
    let body: Body = call.json()?;
    let addresses = parse(&body.addresses.ok_or_else(|| missing("addresses"))?)?;
    let (id, cx) = (resource::id_of::<AddressGroup>(&call)?, call.cx.clone());
    let changed = call
        .write(&app.cell, move |tx| {
            let mut group = AddressGroup::clone(&*resource::own::<AddressGroup>(tx, &cx, id)?);
            change(&mut group, addresses.clone())?;
            group.meta.touch(tx);
            Ok(tx.put(group)?)
        })
        .await?;
    Ok(resource::answer_one(&app, &call, StatusCode::OK, &*changed))
}

/// PUT /address-groups/{id}/add_addresses
pub async fn add_addresses(app: App, call: Call) -> Result<Reply> {
    change(app, call, AddressGroup::add).await
}

/// PUT /address-groups/{id}/remove_addresses
pub async fn remove_addresses(app: App, call: Call) -> Result<Reply> {
    change(app, call, AddressGroup::remove).await
}
