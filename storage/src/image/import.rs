//! Import: bytes that were staged are checked and become the image's (`glance-direct`). Each import is a task.
//!
//! Absent: import from other places (`web-download`, `glance-download`, `copy-image`): there is one store.

use super::files::{self, path, staged};
use super::rest::{aim, cx, id};
use super::{Image, Step, data, get, step};
use crate::App;
use api::page::Page;
use api::{Call, Reply, Route};
use base::{Error, Id, IdKind, ProjectId, Result, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use std::io::Read;
use store::{Index, IndexPart, Record, Tx};

/// The methods that are offered.
pub const METHODS: [&str; 1] = ["glance-direct"];
/// A finished task is told for this long.
const TOLD_S: i64 = 48 * 3600;
/// Tasks kept of an image.
const TASKS_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    Processing,
    Success,
    Failure,
}

/// One import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: Id<Task>,
    pub image: Id<Image>,
    pub owner: ProjectId,
    pub user: UserId,
    pub request: String,
    /// The body of the request.
    pub input: Value,
    pub status: TaskStatus,
    pub message: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

pub const OF_IMAGE: Index<Task> = Index::many("image", |t, keys| keys.push(t.image.key()));

impl IdKind for Task {}

impl Record for Task {
    const KIND: &'static str = "image_task";
    type Key = Id<Task>;
    const INDEXES: &'static [Index<Task>] = &[OF_IMAGE];

    fn key(&self) -> Id<Task> {
        self.id
    }
}

pub(super) fn forget(tx: &mut Tx, image: Id<Image>) {
    let all: Vec<_> = tx.by(&OF_IMAGE, image).map(|t| t.id).collect();
    all.iter().for_each(|t| drop(tx.delete::<Task>(t)));
}

pub fn routes() -> Vec<Route<App>> {
    vec![
        api::post("/v2/images/{image_id}/import", "modify_image", import).target(aim),
        api::get("/v2/images/{image_id}/tasks", "get_task", tasks).target(aim),
        api::get("/v2/tasks", "tasks_api_access", all_tasks),
        api::post("/v2/tasks", "tasks_api_access", no_task),
        api::get("/v2/tasks/{task_id}", "tasks_api_access", one_task),
        api::get("/v2/info/import", "get_images", methods),
        api::get("/v2/info/stores", "get_images", stores),
    ]
}

async fn methods(_: App, _: Call) -> Result<Reply> {
    let methods = json!({"description": "Import methods available.", "type": "array", "value": METHODS});
    Ok(Reply::ok(&json!({"import-methods": methods})))
}

/// As Glance answers where there is one store: clients then ask no image for its stores.
async fn stores(_: App, _: Call) -> Result<Reply> {
    Err(Error::not_found("Multi backend is not supported at this site."))
}

/// Errors: `Invalid` for a method or store that is not offered.
fn asked(body: &Value) -> Result<()> {
    let method = body["method"]["name"].as_str().unwrap_or_default();
    if !METHODS.contains(&method) {
        return Err(Error::invalid(format!("Unknown import method name '{}'.", method.escape_default())));
    }
    match body["stores"].as_array().is_some_and(|s| !s.is_empty()) {
        true => Err(Error::invalid("There are no stores to choose from.")),
        false => Ok(()),
    }
}

async fn import(app: App, call: Call) -> Result<Reply> {
    let body: Value = call.json()?;
    asked(&body)?;
    let (id, cx) = (id(&call)?, cx(&call));
    get(&app.cell.read(), &cx, id)?;
    let busy = app.uploads.mark(id);
    let begun = call.write(&app.cell, move |tx| {
        let image = step(tx, id, &Step::Save)?;
        let old: Vec<_> = tx.by(&OF_IMAGE, id).filter(|t| is_old(t, tx.now())).map(|t| t.id).collect();
        old.iter().for_each(|t| drop(tx.delete::<Task>(t)));
        if tx.by(&OF_IMAGE, id).count() >= TASKS_MAX {
            return Err(Error::conflict("The image was imported too often."));
        }
        let (now, task) = (tx.now(), tx.new_id());
        tx.put(Task {
            id: task,
            image: id,
            owner: image.owner,
            user: cx.user(),
            request: cx.request.to_string(),
            input: json!({"image_id": id, "import_req": body}),
            status: TaskStatus::Processing,
            message: String::new(),
            created_at: now,
            updated_at: now,
        })?;
        Ok((image, task))
    });
    let (image, task) = begun.await?;
    let cause = call.cause();
    tokio::spawn(store::carried(async move {
        let _busy = busy;
        let max = app.settings.image_bytes_max;
        let (settings, kept) = (app.settings.clone(), image.clone());
        let moved = tokio::task::spawn_blocking(move || take(&settings, &kept, max)).await;
        let saved = moved.unwrap_or_else(|e| Err(Error::internal("an import panicked").because(e)));
        let outcome = data::end(&app, cause.clone(), id, saved).await;
        if let Err(error) = app.cell.write(cause, move |tx| ended(tx, task, &outcome)).await {
            tracing::warn!("the end of an import is not told: {}", error.chain());
        }
    }));
    Ok(Reply::accepted_empty())
}

fn is_old(task: &Task, now: Timestamp) -> bool {
    task.status != TaskStatus::Processing && task.updated_at.plus_secs(TOLD_S) < now
}

fn ended(tx: &mut Tx, id: Id<Task>, outcome: &Result<()>) -> Result<()> {
    let now = tx.now();
    tx.update::<Task>(&id, |task| {
        task.updated_at = now;
        task.status = if outcome.is_ok() { TaskStatus::Success } else { TaskStatus::Failure };
        task.message = outcome.as_ref().err().map(|e| e.message().to_string()).unwrap_or_default();
    })?;
    Ok(())
}

/// Checks the staged bytes and moves them to their place.
fn take(settings: &crate::Settings, image: &Image, max: u64) -> Result<Step> {
    let from = staged(settings, image.id);
    let mut file = std::fs::File::open(&from)?;
    let (mut md5, mut sha512, mut size) = (md5::Md5::new(), Sha512::new(), 0);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        md5.update(&chunk[..n]);
        sha512.update(&chunk[..n]);
    }
    if size > max {
        return Err(Error::too_large(format!("The image is larger than the {max} bytes that it may have.")));
    }
    let virtual_size = match image.fields.disk_format {
        Some(format) => files::look(&mut file, format, size)?,
        None => size,
    };
    let to = path(settings, image.id);
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::rename(from, &to)?;
    let (md5, sha512) = (format!("{:x}", md5.finalize()), format!("{:x}", sha512.finalize()));
    Ok(Step::Saved(super::Content { size, virtual_size, md5, sha512 }))
}

fn view(task: &Task) -> Value {
    json!({
        "id": task.id, "type": "api_image_import", "status": task.status, "owner": task.owner,
        "image_id": task.image, "user_id": task.user, "request_id": task.request, "input": task.input,
        "message": task.message, "result": null,
        "created_at": task.created_at.zulu(), "updated_at": task.updated_at.zulu(),
        "expires_at": task.updated_at.plus_secs(TOLD_S).zulu(),
        "self": format!("/v2/tasks/{}", task.id), "schema": "/v2/schemas/task",
    })
}

async fn tasks(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let image = get(&state, &cx(&call), id(&call)?)?;
    let tasks: Vec<Value> = state.by(&OF_IMAGE, image.id).map(|t| view(t)).collect();
    Ok(Reply::ok(&json!({"tasks": tasks})))
}

async fn all_tasks(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let (tasks, more) = Page::of(&call.query)?.cut(state.all::<Task>(), |t| t.id.to_string())?;
    let mut body = json!({"first": "/v2/tasks", "schema": "/v2/schemas/tasks"});
    if let Some(last) = tasks.last().filter(|_| more) {
        body["next"] = api::page::next(&call, &last.id.to_string())[call.base.len()..].into();
    }
    body["tasks"] = tasks.iter().map(|t| view(t)).collect();
    Ok(Reply::ok(&body))
}

async fn one_task(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let id: Id<Task> = call.id("task_id", "Task")?;
    let task =
        state.get::<Task>(&id).ok_or_else(|| Error::not_found(format!("No task found with ID {id}")))?;
    Ok(Reply::ok(&view(task)))
}

/// Tasks are made by the import of an image only: their other kind fetches from any address.
async fn no_task(_: App, _: Call) -> Result<Reply> {
    Err(Error::invalid(
        "Images are not imported from other addresses; stage the bytes of an image and import that.",
    ))
}
