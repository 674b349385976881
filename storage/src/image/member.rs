//! Members: the projects that a shared image is shared with. Each accepts it or not; only then it is in its list.

use super::rest::{aim, cx, id};
use super::{Image, Visibility, get};
use crate::App;
use api::{Call, Reply, Route};
use base::{Error, Id, ProjectId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

/// Members of an image.
pub const MEMBERS_MAX: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberStatus {
    Pending,
    Accepted,
    Rejected,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub image: Id<Image>,
    pub project: ProjectId,
    pub status: MemberStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

pub const OF_IMAGE: Index<Member> = Index::many("image", |m, keys| keys.push(m.image.key()));
pub const OF_PROJECT: Index<Member> = Index::many("project", |m, keys| keys.push(m.project.key()));

impl Record for Member {
    const KIND: &'static str = "image_member";
    type Key = String;
    const INDEXES: &'static [Index<Member>] = &[OF_IMAGE, OF_PROJECT];

    fn key(&self) -> String {
        key(self.image, self.project)
    }
}

fn key(image: Id<Image>, project: ProjectId) -> String {
    format!("{image}/{project}")
}

fn find(state: &State, image: Id<Image>, project: ProjectId) -> Result<&Arc<Member>> {
    let missing =
        || Error::not_found(format!("{project} not found in the member list of the image {image}."));
    state.get::<Member>(&key(image, project)).ok_or_else(missing)
}

/// Whether an image is shared with a project, whatever the project answered.
pub fn is(state: &State, image: &Image, project: ProjectId) -> bool {
    image.fields.visibility == Visibility::Shared && find(state, image.id, project).is_ok()
}

pub fn of_project(state: &State, project: ProjectId) -> impl Iterator<Item = &Arc<Member>> {
    state.by(&OF_PROJECT, project)
}

pub(super) fn forget(tx: &mut Tx, image: Id<Image>) {
    let all: Vec<_> = tx.by(&OF_IMAGE, image).map(|m| m.key()).collect();
    all.iter().for_each(|m| drop(tx.delete::<Member>(m)));
}

/// Errors: `Forbidden` when the image is not shared, `Conflict` for a second time, `TooLarge`.
pub fn create(tx: &mut Tx, image: &Image, project: ProjectId) -> Result<Arc<Member>> {
    if image.fields.visibility != Visibility::Shared {
        return Err(Error::forbidden("Only shared images have members."));
    }
    if find(tx, image.id, project).is_ok() {
        return Err(Error::conflict(format!("Project {project} is already a member of image {}.", image.id)));
    }
    if tx.by(&OF_IMAGE, image.id).count() >= MEMBERS_MAX {
        return Err(Error::too_large(format!("An image has at most {MEMBERS_MAX} members.")));
    }
    let (now, status) = (tx.now(), MemberStatus::Pending);
    Ok(tx.put(Member { image: image.id, project, status, created_at: now, updated_at: now })?)
}

pub fn routes() -> Vec<Route<App>> {
    const ALL: &str = "/v2/images/{image_id}/members";
    const ONE: &str = "/v2/images/{image_id}/members/{member_id}";
    vec![
        api::get(ALL, "get_members", list).target(aim),
        api::post(ALL, "add_member", post).target(aim),
        api::get(ONE, "get_member", show).target(aim_member),
        api::put(ONE, "modify_member", answer),
        api::delete(ONE, "delete_member", remove).target(aim),
    ]
}

/// A member asks about itself; the path must not make another of it.
fn aim_member(app: &App, call: &Call, target: &mut api::Target) {
    target.remove("member_id");
    aim(app, call, target);
}

fn view(member: &Member) -> Value {
    json!({
        "image_id": member.image,
        "member_id": member.project,
        "status": member.status,
        "created_at": member.created_at.zulu(),
        "updated_at": member.updated_at.zulu(),
        "schema": "/v2/schemas/member",
    })
}

fn project(text: &str) -> Result<ProjectId> {
    text.parse()
        .map_err(|_| Error::not_found(format!("{} is not the id of a project.", text.escape_default())))
}

/// A member sees itself, the owner all.
fn is_shown(call: &Call, image: &Image, member: &Member) -> bool {
    call.cx.has_role("admin") || call.cx.project() == image.owner || call.cx.project() == member.project
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let image = get(&state, &cx(&call), id(&call)?)?;
    if image.fields.visibility != Visibility::Shared {
        return Err(Error::forbidden("Only shared images have members."));
    }
    let members = state.by(&OF_IMAGE, image.id).filter(|m| is_shown(&call, &image, m));
    let members: Vec<Value> = members.map(|m| view(m)).collect();
    Ok(Reply::ok(&json!({"members": members, "schema": "/v2/schemas/members"})))
}

async fn post(app: App, call: Call) -> Result<Reply> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct New {
        member: String,
    }
    let new: New = call.json()?;
    let project = project(&new.member).map_err(|e| Error::invalid(e.message()))?;
    let (id, cx) = (id(&call)?, cx(&call));
    let member = call.write(&app.cell, move |tx| {
        let image = get(tx, &cx, id)?;
        create(tx, &image, project)
    });
    Ok(Reply::ok(&view(&*member.await?)))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let image = get(&state, &cx(&call), id(&call)?)?;
    let member = find(&state, image.id, project(call.param("member_id"))?)?;
    match is_shown(&call, &image, member) {
        true => Ok(Reply::ok(&view(member))),
        false => Err(super::missing(image.id)),
    }
}

/// The member's own answer: nobody else gives it, not even the owner.
async fn answer(app: App, call: Call) -> Result<Reply> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Answer {
        status: MemberStatus,
    }
    let Answer { status } = call.json()?;
    let (id, cx) = (id(&call)?, cx(&call));
    let project = project(call.param("member_id"))?;
    let member = call.write(&app.cell, move |tx| {
        get(tx, &cx, id)?;
        let mut member = Member::clone(find(tx, id, project)?);
        (member.status, member.updated_at) = (status, tx.now());
        Ok(tx.put(member)?)
    });
    Ok(Reply::ok(&view(&*member.await?)))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (id(&call)?, cx(&call));
    let project = project(call.param("member_id"))?;
    call.write(&app.cell, move |tx| {
        get(tx, &cx, id)?;
        let gone = find(tx, id, project)?.key();
        tx.delete::<Member>(&gone);
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}
