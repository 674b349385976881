//! Subnet pools: prefixes that subnets are carved from.

use crate::address_scope::AddressScope;
use crate::attr::{self, Flag, Meta, Whole, input, missing, nullable};
use crate::rbac::{self, Action, Kind, Shared};
use crate::resource::{self, Resource, Wanted};
use crate::subnet::{self, BY_POOL};
use crate::{App, SUBNET_POOL, ipam};
use api::{Call, Reply, Target, View};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use identity::limit;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubnetPool {
    pub id: Id<SubnetPool>,
    pub meta: Meta,
    /// Of one IP version, merged where they touch.
    pub prefixes: Vec<IpNet>,
    pub length_default: u8,
    pub length_min: u8,
    pub length_max: u8,
    pub default: bool,
    /// Addresses (IPv4) or /64s (IPv6) that one project may take.
    #[serde(default)]
    pub quota: Option<i64>,
    #[serde(default)]
    pub scope: Option<Id<AddressScope>>,
}

impl IdKind for SubnetPool {}

pub const BY_SCOPE: Index<SubnetPool> = Index::many("scope", |p, keys| keys.extend(p.scope.map(|s| s.key())));

impl Shared for SubnetPool {
    const RBAC: Kind = Kind::SubnetPool;
}

impl Record for SubnetPool {
    const KIND: &'static str = "subnet_pool";
    type Key = Id<SubnetPool>;
    const INDEXES: &'static [Index<SubnetPool>] = &[BY_SCOPE];

    fn key(&self) -> Id<SubnetPool> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, SUBNET_POOL.name, 1);
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    prefixes: Option<Vec<String>>,
    default_prefixlen: Option<Whole>,
    min_prefixlen: Option<Whole>,
    max_prefixlen: Option<Whole>,
    shared: Option<Flag>,
    is_default: Option<Flag>,
    #[serde(default, deserialize_with = "nullable")]
    default_quota: Option<Option<Whole>>,
    #[serde(default, deserialize_with = "nullable")]
    address_scope_id: Option<Option<Id<AddressScope>>>,
}

impl SubnetPool {
    pub fn is_v4(&self) -> bool {
        self.prefixes.first().is_none_or(|p| p.addr().is_ipv4())
    }
}

impl Resource for SubnetPool {
    const ONE: &'static str = "subnetpool";
    const MANY: &'static str = "subnetpools";
    const TITLE: &'static str = "Subnet pool";
    const NOT_FOUND: &'static str = "SubnetPoolNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "prefixes",
        "ip_version",
        "default_prefixlen",
        "min_prefixlen",
        "max_prefixlen",
        "shared",
        "is_default",
        "default_quota",
        "address_scope_id",
    ];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn visible(&self, state: &State, cx: &Context) -> bool {
        cx.sees(self.meta.project) || rbac::shared(state, self.id, cx)
    }

    fn view(&self, state: &State, cx: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        view.put("prefixes", &self.prefixes);
        view.put("ip_version", &if self.is_v4() { 4 } else { 6 });
        view.put("default_prefixlen", &self.length_default);
        view.put("min_prefixlen", &self.length_min);
        view.put("max_prefixlen", &self.length_max);
        view.put("shared", &rbac::shared(state, self.id, cx));
        view.put("is_default", &self.default);
        view.put("default_quota", &self.quota);
        view.put("address_scope_id", &self.scope);
    }

    fn guard(call: &Call, body: &Body, verb: &str) -> Result<()> {
        for (attribute, used) in [("shared", body.shared), ("is_default", body.is_default)] {
            if attr::privileged(used, verb) {
                call.require(&format!("{verb}_subnetpool:{attribute}"), &Target::new())?;
            }
        }
        Ok(())
    }

    fn create(
        tx: &mut Tx,
        cx: &Context,
        project: ProjectId,
        body: &Wanted<SubnetPool>,
    ) -> Result<Arc<SubnetPool>> {
        limit::claim(tx, project, &SUBNET_POOL, 1)?;
        let prefixes = prefixes(body.prefixes.as_deref().ok_or_else(|| missing("prefixes"))?)?;
        let v4 = prefixes[0].addr().is_ipv4();
        let (low, high) = if v4 { (8, 32) } else { (64, 128) };
        let mut pool = SubnetPool {
            id: tx.new_id(),
            meta: Meta::new(tx, project),
            prefixes,
            length_default: low,
            length_min: low,
            length_max: high,
            default: false,
            quota: None,
            scope: None,
        };
        if let Some(Whole(n)) = body.min_prefixlen {
            pool.length_min = length(n, v4)?;
            pool.length_default = pool.length_min;
        }
        apply(tx, &mut pool, body)?;
        join_scope(tx, cx, &mut pool, body.address_scope_id)?;
        let pool = tx.put(pool)?;
        rbac::for_everyone(tx, &*pool, Action::AccessAsShared, body.shared.is_some_and(|f| f.0))?;
        Ok(pool)
    }

    fn update(
        tx: &mut Tx,
        cx: &Context,
        old: &SubnetPool,
        body: &Wanted<SubnetPool>,
    ) -> Result<Arc<SubnetPool>> {
        let mut pool = old.clone();
        if let Some(texts) = &body.prefixes {
            let new = prefixes(texts)?;
            if !old.prefixes.iter().all(|p| new.iter().any(|n| n.contains(p))) {
                let message =
                    "Illegal subnetpool update: existing prefixes must be a subset of the new prefixes.";
                return Err(Error::invalid(message).named("IllegalSubnetPoolPrefixUpdate"));
            }
            check_family(old, &new)?;
            pool.prefixes = new;
        }
        if let Some(Whole(n)) = body.min_prefixlen {
            pool.length_min = length(n, pool.is_v4())?;
        }
        apply(tx, &mut pool, body)?;
        join_scope(tx, cx, &mut pool, body.address_scope_id)?;
        pool.meta.touch(tx);
        let pool = tx.put(pool)?;
        if let Some(Flag(shared)) = body.shared {
            rbac::for_everyone(tx, &*pool, Action::AccessAsShared, shared)?;
        }
        Ok(pool)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &SubnetPool) -> Result<()> {
        if tx.by(&BY_POOL, old.id).next().is_some() {
            let message =
                format!("Unable to delete subnet pool: Subnets allocated from subnet pool {} exist.", old.id);
            return Err(Error::conflict(message).named("SubnetPoolDeleteError"));
        }
        rbac::forget(tx, old.id);
        tx.delete::<SubnetPool>(&old.id);
        Ok(())
    }
}

fn apply(tx: &Tx, pool: &mut SubnetPool, body: &Wanted<SubnetPool>) -> Result<()> {
    pool.meta.apply(&body.meta);
    let v4 = pool.is_v4();
    if let Some(Whole(n)) = body.max_prefixlen {
        pool.length_max = length(n, v4)?;
    }
    if let Some(Whole(n)) = body.default_prefixlen {
        pool.length_default = length(n, v4)?;
    }
    if let Some(quota) = body.default_quota {
        pool.quota = quota.map(|q| q.0);
    }
    pool.default = body.is_default.map_or(pool.default, |f| f.0);
    if pool.default && default(tx, v4).is_some_and(|p| p.id != pool.id) {
        let text = format!(
            "A default subnetpool for IP family {} has already been set. Only one default may exist per IP family.",
            if v4 { 4 } else { 6 }
        );
        return Err(input(text));
    }
    let SubnetPool { length_min: min, length_default: default, length_max: max, .. } = *pool;
    match min <= default && default <= max {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "Illegal prefix bounds: min_prefixlen={min}, default_prefixlen={default}, max_prefixlen={max}."
        ))
        .named("IllegalSubnetPoolPrefixBounds")),
    }
}

/// Puts a pool into an address scope, or takes it out; None leaves it.
fn join_scope(
    tx: &Tx,
    cx: &Context,
    pool: &mut SubnetPool,
    wanted: Option<Option<Id<AddressScope>>>,
) -> Result<()> {
    let before = pool.scope;
    pool.scope = wanted.unwrap_or(pool.scope);
    let Some(id) = pool.scope else { return Ok(()) };
    let scope = resource::get::<AddressScope>(tx, cx, id)?;
    if scope.v6 == pool.is_v4() {
        let text = format!(
            "Illegal subnetpool association: subnetpool {} is of another IP version than address scope {id}.",
            pool.id
        );
        return Err(Error::invalid(text).named("IllegalSubnetPoolIpVersionAssociationToAddressScope"));
    }
    let others = tx.by(&BY_SCOPE, id).filter(|p| p.id != pool.id);
    let mut prefixes = others.flat_map(|p| &p.prefixes);
    if prefixes.any(|p| pool.prefixes.iter().any(|mine| ipam::overlap(p, mine))) {
        let text = "Failed to associate address scope: subnetpools within an address scope must have unique prefixes.";
        return Err(Error::invalid(text).named("AddressScopePrefixConflict"));
    }
    let networks: BTreeSet<_> = tx.by(&BY_POOL, pool.id).map(|s| s.network).collect();
    let mut beside = networks.iter().flat_map(|n| tx.by(&subnet::BY_NETWORK, *n));
    let foreign =
        |s: &Arc<subnet::Subnet>| s.cidr.addr().is_ipv4() == pool.is_v4() && s.pool != Some(pool.id);
    match before != pool.scope && beside.any(foreign) {
        true => Err(affinity()),
        false => Ok(()),
    }
}

fn affinity() -> Error {
    let text = "Subnets of the same address family hosted on the same network must all participate in the same address scope.";
    Error::invalid(text).named("NetworkAddressScopeAffinityError")
}

fn length(n: i64, v4: bool) -> Result<u8> {
    let max = if v4 { 32 } else { 128 };
    u8::try_from(n)
        .ok()
        .filter(|n| *n <= max)
        .ok_or_else(|| input(format!("a prefix length is from 0 to {max}")))
}

fn prefixes(texts: &[String]) -> Result<Vec<IpNet>> {
    let all: Vec<IpNet> = texts.iter().map(|t| subnet::parse_cidr(t)).collect::<Result<_>>()?;
    let Some(first) = all.first() else {
        return Err(Error::invalid("Subnet pool prefixes cannot be empty."));
    };
    match all.iter().all(|p| p.addr().is_ipv4() == first.addr().is_ipv4()) {
        true => Ok(IpNet::aggregate(&all)),
        false => Err(input("the prefixes of a pool are of one IP version").named("PrefixVersionMismatch")),
    }
}

/// The default pool of an IP version, if an administrator named one.
pub fn default(state: &State, v4: bool) -> Option<&Arc<SubnetPool>> {
    state.all::<SubnetPool>().find(|p| p.default && p.is_v4() == v4)
}

/// The pool that a subnet names by id.
pub fn find(state: &State, cx: &Context, id: &str) -> Result<Arc<SubnetPool>> {
    let id = id.parse().map_err(|_| resource::not_found::<SubnetPool>(id))?;
    resource::get(state, cx, id)
}

/// A prefix of the pool for a subnet of `project`: the one asked for, or the first free one.
pub fn allocate(
    tx: &Tx,
    project: ProjectId,
    pool: &SubnetPool,
    asked: Option<IpNet>,
    prefix_length: Option<i64>,
) -> Result<IpNet> {
    let used: Vec<IpNet> = tx.by(&BY_POOL, pool.id).map(|s| s.cidr).collect();
    let wanted = match (asked, prefix_length) {
        (Some(cidr), _) => cidr.prefix_len(),
        (None, Some(n)) => length(n, pool.is_v4())?,
        (None, None) => pool.length_default,
    };
    let bounds = |name, word: &str, limit: u8| {
        Error::invalid(format!(
            "Unable to allocate subnet with prefix length {wanted}, {word} allowed prefix is {limit}."
        ))
        .named(name)
    };
    if wanted < pool.length_min {
        return Err(bounds("MinPrefixSubnetAllocationError", "minimum", pool.length_min));
    }
    if wanted > pool.length_max {
        return Err(bounds("MaxPrefixSubnetAllocationError", "maximum", pool.length_max));
    }
    let full = || {
        Error::conflict("Failed to allocate subnet: Insufficient prefix space to allocate subnet.")
            .named("SubnetAllocationError")
    };
    let cidr = match asked {
        None => ipam::carve(&pool.prefixes, wanted, &used).ok_or_else(full)?,
        Some(cidr) => {
            let free = pool.prefixes.iter().any(|p| p.contains(&cidr))
                && !used.iter().any(|u| ipam::overlap(u, &cidr));
            free.then_some(cidr).ok_or_else(|| {
                Error::conflict("Failed to allocate subnet: Cannot allocate requested subnet from the available set of prefixes.").named("SubnetAllocationError")
            })?
        }
    };
    check_quota(tx, project, pool, &cidr)?;
    Ok(cidr)
}

fn check_quota(tx: &Tx, project: ProjectId, pool: &SubnetPool, cidr: &IpNet) -> Result<()> {
    let Some(quota) = pool.quota else { return Ok(()) };
    let unit = if pool.is_v4() { 32 } else { 64 };
    let size = |net: &IpNet| {
        1i64.checked_shl(u32::from(unit.max(net.prefix_len()) - net.prefix_len())).unwrap_or(i64::MAX)
    };
    let mine = tx.by(&BY_POOL, pool.id).filter(|s| s.meta.project == project);
    let used = mine.fold(0i64, |sum, s| sum.saturating_add(size(&s.cidr)));
    match used.saturating_add(size(cidr)) <= quota {
        true => Ok(()),
        false => {
            Err(Error::conflict("Per-tenant subnet pool prefix quota exceeded.")
                .named("SubnetPoolQuotaExceeded"))
        }
    }
}

fn check_family(pool: &SubnetPool, new: &[IpNet]) -> Result<()> {
    match new.iter().all(|p| p.addr().is_ipv4() == pool.is_v4()) {
        true => Ok(()),
        false => Err(input("the prefixes of a pool are of one IP version").named("PrefixVersionMismatch")),
    }
}

/// What is left of `prefixes` without `gone`.
fn without(prefixes: &[IpNet], gone: &IpNet) -> Vec<IpNet> {
    let mut left = Vec::new();
    for prefix in prefixes {
        if gone.contains(prefix) {
            continue;
        }
        if !prefix.contains(gone) {
            left.push(*prefix);
            continue;
        }
        // Halves, down to the one that is taken out.
        let mut rest = *prefix;
        while rest != *gone {
            let halves: Vec<IpNet> = match rest.subnets(rest.prefix_len() + 1) {
                Ok(halves) => halves.collect(),
                Err(_) => break,
            };
            left.extend(halves.iter().filter(|h| !h.contains(gone)));
            rest = halves.into_iter().find(|h| h.contains(gone)).unwrap_or(*gone);
        }
    }
    IpNet::aggregate(&left)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prefixes {
    prefixes: Vec<String>,
}

async fn change_prefixes(
    app: App,
    call: Call,
    change: fn(&Tx, &SubnetPool, &[IpNet]) -> Result<Vec<IpNet>>,
) -> Result<Reply> {
    let body: Prefixes = call.json()?;
    let (id, cx, wanted) =
        (resource::id_of::<SubnetPool>(&call)?, call.cx.clone(), prefixes(&body.prefixes)?);
    let view = call
        .write(&app.cell, move |tx| {
            let mut pool = SubnetPool::clone(&*resource::own::<SubnetPool>(tx, &cx, id)?);
            check_family(&pool, &wanted)?;
            pool.prefixes = change(tx, &pool, &wanted)?;
            pool.meta.touch(tx);
            join_scope(tx, &cx, &mut pool, None)?;
            let pool = tx.put(pool)?;
            Ok(json!({"prefixes": pool.prefixes}))
        })
        .await?;
    Ok(Reply::ok(&view))
}

/// PUT /subnetpools/{id}/add_prefixes
pub async fn add_prefixes(app: App, call: Call) -> Result<Reply> {
    let add = |_: &Tx, pool: &SubnetPool, new: &[IpNet]| {
        Ok(IpNet::aggregate(&[pool.prefixes.as_slice(), new].concat()))
    };
    change_prefixes(app, call, add).await
}

/// PUT /subnetpools/{id}/remove_prefixes
pub async fn remove_prefixes(app: App, call: Call) -> Result<Reply> {
    let remove =
        |tx: &Tx, pool: &SubnetPool, gone: &[IpNet]| {
            let mut subnets = tx.by(&BY_POOL, pool.id);
            if subnets.any(|s| gone.iter().any(|g| ipam::overlap(&s.cidr, g))) {
                let text = "Illegal subnetpool update: one or more of the prefixes to remove is in use";
                return Err(Error::invalid(text).named("IllegalSubnetPoolPrefixUpdate"));
            }
            let left = gone.iter().fold(pool.prefixes.clone(), |left, g| without(&left, g));
            match left.is_empty() {
                true => Err(Error::invalid("Subnet pool prefixes cannot be empty.")
                    .named("EmptySubnetPoolPrefixList")),
                false => Ok(left),
            }
        };
    change_prefixes(app, call, remove).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prefixes: &str, gone: &str, expect: &str) {
        let prefixes: Vec<IpNet> = prefixes.split(' ').map(|p| p.parse().unwrap()).collect();
        let left = without(&prefixes, &gone.parse().unwrap());
        assert_eq!(left.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" "), expect);
    }

    #[test]
    fn a_prefix_is_taken_out_and_the_rest_stays() {
        check("10.0.0.0/8", "10.0.0.0/8", "");
        check("10.0.0.0/8 10.128.0.0/16", "10.0.0.0/8", "");
        check("10.0.0.0/22", "10.0.1.0/24", "10.0.0.0/24 10.0.2.0/23");
        check("10.0.0.0/24 10.2.0.0/24", "10.2.0.0/24", "10.0.0.0/24");
        check("10.0.0.0/24", "10.9.0.0/24", "10.0.0.0/24");
        check("2001:db8::/47", "2001:db8::/48", "2001:db8:1::/48");
    }
}
