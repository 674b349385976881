//! Metering labels and their rules: which traffic of a project's routers a bill tells apart.
//!
//! Records and their API. Nodes do not count by label.

use crate::attr::{Flag, Meta, input, missing};
use crate::resource::{self, Resource, Wanted};
use api::View;
use base::node::Direction;
use base::{Context, Error, Id, IdKind, Kind, ProjectId, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeteringLabel {
    pub id: Id<MeteringLabel>,
    pub meta: Meta,
    /// Of the routers of all projects.
    pub shared: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeteringLabelRule {
    pub id: Id<MeteringLabelRule>,
    pub meta: Meta,
    pub label: Id<MeteringLabel>,
    pub direction: Direction,
    pub excluded: bool,
    #[serde(default)]
    pub remote: Option<IpNet>,
    #[serde(default)]
    pub source: Option<IpNet>,
    #[serde(default)]
    pub destination: Option<IpNet>,
}

impl IdKind for MeteringLabel {}
impl IdKind for MeteringLabelRule {}

impl Record for MeteringLabel {
    const KIND: &'static str = "metering_label";
    type Key = Id<MeteringLabel>;
    const INDEXES: &'static [Index<MeteringLabel>] = &[];

    fn key(&self) -> Id<MeteringLabel> {
        self.id
    }
}

const BY_LABEL: Index<MeteringLabelRule> = Index::many("label", |r, keys| keys.push(r.label.key()));

impl Record for MeteringLabelRule {
    const KIND: &'static str = "metering_label_rule";
    type Key = Id<MeteringLabelRule>;
    const INDEXES: &'static [Index<MeteringLabelRule>] = &[BY_LABEL];

    fn key(&self) -> Id<MeteringLabelRule> {
        self.id
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    shared: Option<Flag>,
}

fn fixed() -> Error {
    Error::new(Kind::Method, "Labels and their rules are made and removed, not changed.")
}

impl Resource for MeteringLabel {
    const ONE: &'static str = "metering_label";
    const MANY: &'static str = "metering_labels";
    const TITLE: &'static str = "Metering label";
    const NOT_FOUND: &'static str = "MeteringLabelNotFound";
    const ATTRIBUTES: &'static [&'static str] = &["shared"];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, _: &State, _: &Context, view: &mut View) {
        self.meta.owned(self.id, view);
        view.put("name", &self.meta.name);
        view.put("description", &self.meta.description);
        view.put("shared", &self.shared);
    }

    fn create(
        tx: &mut Tx,
        _: &Context,
        project: ProjectId,
        body: &Wanted<MeteringLabel>,
    ) -> Result<Arc<MeteringLabel>> {
        let mut meta = Meta::new(tx, project);
        meta.apply(&body.meta);
        let id = tx.new_id();
        Ok(tx.put(MeteringLabel { id, meta, shared: body.shared.is_some_and(|f| f.0) })?)
    }

    fn update(_: &mut Tx, _: &Context, _: &Self, _: &Wanted<Self>) -> Result<Arc<MeteringLabel>> {
        Err(fixed())
    }

    fn delete(tx: &mut Tx, _: &Context, old: &MeteringLabel) -> Result<()> {
        let rules: Vec<_> = tx.by(&BY_LABEL, old.id).map(|r| r.id).collect();
        rules.iter().for_each(|id| drop(tx.delete::<MeteringLabelRule>(id)));
        tx.delete::<MeteringLabel>(&old.id);
        Ok(())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleBody {
    metering_label_id: Option<Id<MeteringLabel>>,
    direction: Option<Direction>,
    excluded: Option<Flag>,
    remote_ip_prefix: Option<String>,
    source_ip_prefix: Option<String>,
    destination_ip_prefix: Option<String>,
}

impl Resource for MeteringLabelRule {
    const ONE: &'static str = "metering_label_rule";
    const MANY: &'static str = "metering_label_rules";
    const TITLE: &'static str = "Metering label rule";
    const NOT_FOUND: &'static str = "MeteringLabelRuleNotFound";
    const NAMED: bool = false;
    const ATTRIBUTES: &'static [&'static str] = &[
        "metering_label_id",
        "direction",
        "excluded",
        "remote_ip_prefix",
        "source_ip_prefix",
        "destination_ip_prefix",
    ];
    type Body = RuleBody;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, _: &State, _: &Context, view: &mut View) {
        self.meta.owned(self.id, view);
        view.put("metering_label_id", &self.label);
        view.put("direction", &self.direction);
        view.put("excluded", &self.excluded);
        view.put("remote_ip_prefix", &self.remote);
        view.put("source_ip_prefix", &self.source);
        view.put("destination_ip_prefix", &self.destination);
    }

    fn create(
        tx: &mut Tx,
        cx: &Context,
        project: ProjectId,
        body: &Wanted<MeteringLabelRule>,
    ) -> Result<Arc<MeteringLabelRule>> {
        let label = body.metering_label_id.ok_or_else(|| missing("metering_label_id"))?;
        let label = resource::get::<MeteringLabel>(tx, cx, label)?;
        let remote = prefix(body.remote_ip_prefix.as_deref())?;
        let source = prefix(body.source_ip_prefix.as_deref())?;
        let destination = prefix(body.destination_ip_prefix.as_deref())?;
        if remote.is_some() == (source.is_some() || destination.is_some()) {
            return Err(input(
                "a rule has remote_ip_prefix, or source_ip_prefix and destination_ip_prefix or one of the two",
            ));
        }
        let rule = MeteringLabelRule {
            id: tx.new_id(),
            meta: Meta::new(tx, project),
            label: label.id,
            direction: body.direction.unwrap_or(Direction::Ingress),
            excluded: body.excluded.is_some_and(|f| f.0),
            remote,
            source,
            destination,
        };
        let same = |r: &&Arc<MeteringLabelRule>| {
            let what = |r: &MeteringLabelRule| (r.direction, r.remote, r.source, r.destination);
            what(r) == what(&rule)
        };
        if remote.is_some() && tx.by(&BY_LABEL, label.id).any(|r| same(&r)) {
            let text = format!("Duplicate metering label rule for label {}.", label.id);
            return Err(Error::conflict(text).named("MeteringLabelRuleOverlaps"));
        }
        Ok(tx.put(rule)?)
    }

    fn update(_: &mut Tx, _: &Context, _: &Self, _: &Wanted<Self>) -> Result<Arc<MeteringLabelRule>> {
        Err(fixed())
    }

    fn delete(tx: &mut Tx, _: &Context, old: &MeteringLabelRule) -> Result<()> {
        tx.delete::<MeteringLabelRule>(&old.id);
        Ok(())
    }
}

fn prefix(text: Option<&str>) -> Result<Option<IpNet>> {
    let Some(text) = text else { return Ok(None) };
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let bad = || Error::invalid(format!("'{}' is not a valid IP subnet.", text.escape_default()));
    net.map(Some).ok_or_else(bad)
}
