//! `/v2/images`: create, list, show, update, delete, tags, deactivate and reactivate.

use super::view::{import_methods, view};
use super::{Image, ImageFields, Step, Visibility, create, delete, get, list, member, patch, step, update};
use crate::App;
use api::{Call, Reply, Route, Target};
use base::{Context, Error, Id, ProjectId, Result};
use http::StatusCode;
use serde_json::{Map, Value};

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v2/images/{image_id}";
    const TAG: &str = "/v2/images/{image_id}/tags/{tag}";
    vec![
        api::get("/v2/images", "get_images", list::list).exact(),
        api::post("/v2/images", "add_image", post).target(aim_new).exact(),
        api::get(ONE, "get_image", show).target(aim),
        api::patch(ONE, "modify_image", change).target(aim),
        api::delete(ONE, "delete_image", remove).target(aim),
        api::put(TAG, "modify_image", tag).target(aim),
        api::delete(TAG, "modify_image", untag).target(aim),
        api::post("/v2/images/{image_id}/actions/deactivate", "deactivate", |a, c| {
            act(a, c, Step::Deactivate)
        })
        .target(aim),
        api::post("/v2/images/{image_id}/actions/reactivate", "reactivate", |a, c| {
            act(a, c, Step::Reactivate)
        })
        .target(aim),
    ]
}

pub fn id(call: &Call) -> Result<Id<Image>> {
    call.param("image_id").parse().map_err(|_| super::missing(call.param("image_id").escape_default()))
}

/// The caller, who sees everything if the rule says so of an image of nobody: a rule that passes because an image is
/// public says nothing of others.
pub fn cx(call: &Call) -> Context {
    Context { everywhere: call.may("get_image", &Target::new()), ..call.cx.clone() }
}

/// What a rule asks of the image in the path. One that the caller may not know of counts as its own: the answer is then
/// 404, and 403 only for what it sees.
pub fn aim(app: &App, call: &Call, target: &mut Target) {
    let state = app.cell.read();
    let cx = self::cx(call);
    let own = cx.project().to_string();
    let found = id(call).and_then(|id| get(&state, &cx, id));
    let Ok(image) = found else {
        target.insert("project_id".into(), own);
        return;
    };
    target.insert("project_id".into(), image.owner.to_string());
    target.insert("owner".into(), image.owner.to_string());
    target.insert("visibility".into(), image.fields.visibility.word());
    if member::is(&state, &image, cx.project()) {
        target.insert("member_id".into(), own);
    }
}

/// The owner that a body names, else the caller's project.
fn aim_new(_: &App, call: &Call, target: &mut Target) {
    let body: Value = serde_json::from_slice(call.bytes()).unwrap_or_default();
    let owner = body.get("owner").and_then(Value::as_str);
    let owner = owner.map_or_else(|| call.cx.project().to_string(), str::to_string);
    target.insert("owner".into(), owner);
}

/// Errors: `Forbidden` when the caller may not give an image this visibility.
fn may_show(call: &Call, owner: ProjectId, visibility: Visibility) -> Result<()> {
    let target = Target::from([("project_id".to_string(), owner.to_string())]);
    match visibility {
        Visibility::Public => call.require("publicize_image", &target),
        Visibility::Community => call.require("communitize_image", &target),
        Visibility::Private | Visibility::Shared => Ok(()),
    }
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let body: Map<String, Value> = call.json()?;
    let new = patch::parse(body, call.cx.project())?;
    may_show(&call, new.owner, new.fields.visibility)?;
    let cx = self::cx(&call);
    let image =
        call.write(&app.cell, move |tx| create(tx, &cx, new.id, new.owner, new.fields.clone())).await?;
    Ok(Reply::json(StatusCode::CREATED, &view(&image))
        .header("location", format!("{}/v2/images/{}", call.base, image.id))
        .header("openstack-image-import-methods", import_methods()))
}

async fn show(app: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&view(&*get(&app.cell.read(), &self::cx(&call), id(&call)?)?)))
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let id = id(&call)?;
    let changes = patch::read(&call)?;
    let old = get(&app.cell.read(), &self::cx(&call), id)?;
    let (owner, fields) = patch::apply(&old, &changes)?;
    if fields.visibility != old.fields.visibility {
        may_show(&call, old.owner, fields.visibility)?;
    }
    if owner != old.owner && !call.cx.has_role("admin") {
        return Err(Error::forbidden("Only an administrator gives an image to another project."));
    }
    let cx = self::cx(&call);
    let image = call.write(&app.cell, move |tx| {
        let (owner, fields) = patch::apply(&*get(tx, &cx, id)?, &changes)?;
        update(tx, &cx, id, owner, fields)
    });
    Ok(Reply::ok(&view(&*image.await?)))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (id(&call)?, self::cx(&call));
    call.write(&app.cell, move |tx| delete(tx, &cx, id)).await?;
    if !app.cell.is_trial() {
        super::files::remove(&app.settings, id).await;
    }
    Ok(Reply::no_content())
}

/// Changes the fields of the image in the path.
async fn edit(
    app: &App,
    call: &Call,
    f: impl Fn(&mut ImageFields) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (id, cx) = (id(call)?, self::cx(call));
    let done = call.write(&app.cell, move |tx| {
        let image = get(tx, &cx, id)?;
        let mut fields = image.fields.clone();
        f(&mut fields)?;
        update(tx, &cx, id, image.owner, fields).map(drop)
    });
    done.await
}

async fn tag(app: App, call: Call) -> Result<Reply> {
    let tag = patch::tag(call.param("tag"))?;
    edit(&app, &call, move |fields| {
        fields.tags.insert(tag.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::no_content())
}

async fn untag(app: App, call: Call) -> Result<Reply> {
    let tag = call.param("tag").to_string();
    edit(&app, &call, move |fields| match fields.tags.remove(&tag) {
        true => Ok(()),
        false => Err(Error::not_found(format!("No tag {} on the image.", tag.escape_default()))),
    })
    .await?;
    Ok(Reply::no_content())
}

async fn act(app: App, call: Call, what: Step) -> Result<Reply> {
    let id = id(&call)?;
    get(&app.cell.read(), &self::cx(&call), id)?;
    call.write(&app.cell, move |tx| step(tx, id, &what)).await.map_err(|e| match e.kind() {
        base::Kind::Conflict => Error::forbidden(e.message()),
        _ => e,
    })?;
    Ok(Reply::no_content())
}
