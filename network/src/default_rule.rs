//! Default security group rules: the rules that a new group starts with, a project's default group or any other.
//!
//! One record has them all; while nobody has changed any, there is none and the built-in ones hold: everything may leave,
//! and the members of a default group reach each other. Groups that are there keep the rules that they have.
//!
//! Limits: `RULES_MAX`.

use crate::App;
use crate::attr::{Flag, Meta, input};
use crate::resource::{self, Resource, Wanted};
use crate::security_group::{self, Remote, SecurityGroup, SecurityGroupRule};
use api::{Call, Reply, view};
use base::node::Direction;
use base::{Context, Error, Id, IdKind, ProjectId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::{Index, Record, State, Tx};

const RULES_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DefaultRules {
    pub id: Id<DefaultRules>,
    pub rules: Vec<DefaultRule>,
}

/// One rule of new groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DefaultRule {
    /// Of no group.
    pub rule: SecurityGroupRule,
    /// The remote is the group that it becomes a rule of; at the API `PARENT`.
    pub parent: bool,
    pub in_default: bool,
    pub in_others: bool,
}

impl IdKind for DefaultRules {}

impl Record for DefaultRules {
    const KIND: &'static str = "default_security_group_rules";
    type Key = Id<DefaultRules>;
    const INDEXES: &'static [Index<DefaultRules>] = &[];

    fn key(&self) -> Id<DefaultRules> {
        self.id
    }
}

/// The ids of the built-in rules.
const BUILT_IN: u128 = 0x7b1e_93d5_20ac_4f68_9c47_d6f0_35e8_0000;

fn built_in() -> Vec<DefaultRule> {
    let kinds = [(Direction::Egress, false, true), (Direction::Ingress, true, false)];
    let families = kinds.iter().flat_map(|kind| [(kind, false), (kind, true)]);
    let one =
        |(n, ((direction, parent, in_others), v6)): (u128, (&(Direction, bool, bool), bool))| DefaultRule {
            rule: SecurityGroupRule {
                id: Id::from_uuid(uuid::Uuid::from_u128(BUILT_IN + n)),
                meta: Meta { created: Timestamp(0), updated: Timestamp(0), ..Meta::default() },
                group: Id::ZERO,
                direction: *direction,
                v6,
                protocol: None,
                min: None,
                max: None,
                remote: Remote::Any,
            },
            parent: *parent,
            in_default: true,
            in_others: *in_others,
        };
    (1..).zip(families).map(one).collect()
}

fn all(state: &State) -> Vec<DefaultRule> {
    state.get::<DefaultRules>(&Id::ZERO).map_or_else(built_in, |d| d.rules.clone())
}

/// Gives a new group its rules.
pub fn fill(tx: &mut Tx, group: &SecurityGroup, is_default: bool) -> Result<()> {
    for template in all(tx) {
        if !(if is_default { template.in_default } else { template.in_others }) {
            continue;
        }
        let mut meta = Meta::new(tx, group.meta.project);
        meta.description = template.rule.meta.description.clone();
        let remote = if template.parent { Remote::Group(group.id) } else { template.rule.remote.clone() };
        let id = tx.new_id();
        tx.put(SecurityGroupRule { id, meta, group: group.id, remote, ..template.rule })?;
    }
    Ok(())
}

fn view(state: &State, cx: &Context, template: &DefaultRule) -> Map<String, Value> {
    let mut view = view::value(|view| template.rule.view(state, cx, view));
    let unknown = [
        "project_id",
        "tenant_id",
        "security_group_id",
        "normalized_cidr",
        "belongs_to_default_sg",
        "created_at",
        "updated_at",
        "revision_number",
    ];
    unknown.iter().for_each(|name| drop(view.remove(*name)));
    if template.parent {
        view.insert("remote_group_id".into(), json!("PARENT"));
    }
    view.insert("used_in_default_sg".into(), json!(template.in_default));
    view.insert("used_in_non_default_sg".into(), json!(template.in_others));
    view
}

fn not_found(id: &str) -> Error {
    let text = format!("Default Security Group rule {} does not exist", id.escape_default());
    Error::not_found(text).named("DefaultSecurityGroupRuleNotFound")
}

fn exists() -> Error {
    Error::conflict("Default Security group rule already exists.").named("DefaultSecurityGroupRuleExists")
}

/// GET /default-security-group-rules
pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let views = all(&state).iter().map(|t| view(&state, &call.cx, t)).collect();
    resource::answer(&call, "default_security_group_rules", views)
}

/// GET /default-security-group-rules/{id}
pub async fn show(app: App, call: Call) -> Result<Reply> {
    let (state, id) = (app.cell.read(), call.param("id"));
    let found = all(&state).into_iter().find(|t| t.rule.id.to_string() == id).ok_or_else(|| not_found(id))?;
    let mut view = view(&state, &call.cx, &found);
    resource::select(&call, &mut view);
    Ok(Reply::ok(&json!({"default_security_group_rule": view})))
}

/// What a caller writes beyond a rule.
struct Use {
    parent: bool,
    in_default: bool,
    in_others: bool,
}

/// Splits what is of the template from what is of the rule.
fn parse(mut body: Map<String, Value>) -> Result<(Use, Wanted<SecurityGroupRule>)> {
    let mut flag = |name: &str, or: bool| -> Result<bool> {
        let Some(value) = body.remove(name) else { return Ok(or) };
        Ok(api::call::from_value::<Flag>(value, name)?.0)
    };
    let (in_default, in_others) = (flag("used_in_default_sg", false)?, flag("used_in_non_default_sg", true)?);
    let parent = body.get("remote_group_id").is_some_and(|v| v == "PARENT");
    if parent {
        body.remove("remote_group_id");
    }
    Ok((Use { parent, in_default, in_others }, Wanted::parse(Value::Object(body))?))
}

/// POST /default-security-group-rules
pub async fn create(app: App, call: Call) -> Result<Reply> {
    let (used, body) = parse(call.json_in("default_security_group_rule")?)?;
    let cx = call.cx.clone();
    let view = call
        .write(&app.cell, move |tx| {
            let rule = security_group::parse_rule(tx, &cx, Id::ZERO, ProjectId::ZERO, &body)?;
            let Use { parent, in_default, in_others } = used;
            let template = DefaultRule { rule, parent, in_default, in_others };
            let mut rules = all(tx);
            let same =
                |t: &DefaultRule| t.parent == parent && security_group::same_rule(&t.rule, &template.rule);
            if rules.iter().any(same) {
                return Err(exists());
            }
            if rules.len() >= RULES_MAX {
                return Err(input(format!("new groups start with at most {RULES_MAX} rules")));
            }
            rules.push(template.clone());
            tx.put(DefaultRules { id: Id::ZERO, rules })?;
            Ok(view(tx, &cx, &template))
        })
        .await?;
    Ok(Reply::created(&json!({"default_security_group_rule": view})))
}

/// DELETE /default-security-group-rules/{id}
pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let id = call.param("id").to_string();
    call.write(&app.cell, move |tx| {
        let mut rules = all(tx);
        let at = rules.iter().position(|t| t.rule.id.to_string() == id).ok_or_else(|| not_found(&id))?;
        rules.remove(at);
        tx.put(DefaultRules { id: Id::ZERO, rules })?;
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}
