//! `/v2/metadefs`: namespaces, and in each objects, properties, tags and resource types.

use super::{
    Definition, Kind, Namespace, NamespaceFields, RESOURCE_TYPES, create, define, delete, forget, get,
};
use super::{redefine, sees, update};
use crate::App;
use api::call::from_value;
use api::page::Page;
use api::{Call, Reply, Route, Rule, Target};
use base::{Context, Error, ProjectId, Result};
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

macro_rules! rules {
    ($($name:literal $check:expr),* $(,)?) => { &[$(Rule { name: $name, check: $check, about: "" }),*] };
}

const ADMIN: &str = "role:admin";
const READER: &str = "role:admin or (role:reader and project_id:%(project_id)s)";

pub const RULES: &[Rule] = rules! {
    "get_metadef_namespaces" READER,
    "get_metadef_namespace" READER,
    "add_metadef_namespace" ADMIN,
    "modify_metadef_namespace" ADMIN,
    "delete_metadef_namespace" ADMIN,
    "get_metadef_objects" READER,
    "get_metadef_object" READER,
    "add_metadef_object" ADMIN,
    "modify_metadef_object" ADMIN,
    "delete_metadef_object" ADMIN,
    "get_metadef_properties" READER,
    "get_metadef_property" READER,
    "add_metadef_property" ADMIN,
    "modify_metadef_property" ADMIN,
    "remove_metadef_property" ADMIN,
    "get_metadef_tags" READER,
    "get_metadef_tag" READER,
    "add_metadef_tag" ADMIN,
    "add_metadef_tags" ADMIN,
    "modify_metadef_tag" ADMIN,
    "delete_metadef_tag" ADMIN,
    "delete_metadef_tags" ADMIN,
    "list_metadef_resource_types" READER,
    "get_metadef_resource_type" READER,
    "add_metadef_resource_type_association" ADMIN,
    "remove_metadef_resource_type_association" ADMIN,
};

pub fn routes() -> Vec<Route<App>> {
    const ONE: &str = "/v2/metadefs/namespaces/{namespace}";
    macro_rules! under {
        ($end:literal) => {
            concat!("/v2/metadefs/namespaces/{namespace}", $end)
        };
    }
    use Kind::{Object, Property, ResourceType, Tag};
    vec![
        api::get("/v2/metadefs/namespaces", "get_metadef_namespaces", list),
        api::post("/v2/metadefs/namespaces", "add_metadef_namespace", post),
        api::get(ONE, "get_metadef_namespace", show),
        api::put(ONE, "modify_metadef_namespace", change),
        api::delete(ONE, "delete_metadef_namespace", remove),
        api::get(under!("/objects"), "get_metadef_objects", |a, c| definitions(a, c, Object)),
        api::post(under!("/objects"), "add_metadef_object", |a, c| add(a, c, Object)),
        api::delete(under!("/objects"), "delete_metadef_object", |a, c| clear(a, c, Object)),
        api::get(under!("/objects/{name}"), "get_metadef_object", |a, c| one(a, c, Object)),
        api::put(under!("/objects/{name}"), "modify_metadef_object", |a, c| replace(a, c, Object)),
        api::delete(under!("/objects/{name}"), "delete_metadef_object", |a, c| discard(a, c, Object)),
        api::get(under!("/properties"), "get_metadef_properties", |a, c| definitions(a, c, Property)),
        api::post(under!("/properties"), "add_metadef_property", |a, c| add(a, c, Property)),
        api::delete(under!("/properties"), "remove_metadef_property", |a, c| clear(a, c, Property)),
        api::get(under!("/properties/{name}"), "get_metadef_property", |a, c| one(a, c, Property)),
        api::put(under!("/properties/{name}"), "modify_metadef_property", |a, c| replace(a, c, Property)),
        api::delete(under!("/properties/{name}"), "remove_metadef_property", |a, c| discard(a, c, Property)),
        api::get(under!("/tags"), "get_metadef_tags", |a, c| definitions(a, c, Tag)),
        api::post(under!("/tags"), "add_metadef_tags", add_tags),
        api::delete(under!("/tags"), "delete_metadef_tags", |a, c| clear(a, c, Tag)),
        api::post(under!("/tags/{name}"), "add_metadef_tag", add_tag),
        api::get(under!("/tags/{name}"), "get_metadef_tag", |a, c| one(a, c, Tag)),
        api::put(under!("/tags/{name}"), "modify_metadef_tag", |a, c| replace(a, c, Tag)),
        api::delete(under!("/tags/{name}"), "delete_metadef_tag", |a, c| discard(a, c, Tag)),
        api::get("/v2/metadefs/resource_types", "list_metadef_resource_types", types),
        api::get(under!("/resource_types"), "get_metadef_resource_type", |a, c| {
            definitions(a, c, ResourceType)
        }),
        api::post(under!("/resource_types"), "add_metadef_resource_type_association", |a, c| {
            add(a, c, ResourceType)
        }),
        api::delete(under!("/resource_types/{name}"), "remove_metadef_resource_type_association", |a, c| {
            discard(a, c, ResourceType)
        }),
    ]
}

/// The key of a list, and the last part of its path.
fn plural(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Object => ("objects", "objects"),
        Kind::Property => ("properties", "properties"),
        Kind::Tag => ("tags", "tags"),
        Kind::ResourceType => ("resource_type_associations", "resource_types"),
    }
}

fn cx(call: &Call) -> Context {
    Context { everywhere: call.may("get_metadef_namespace", &Target::new()), ..call.cx.clone() }
}

fn name(call: &Call) -> String {
    call.param("namespace").to_string()
}

fn view(namespace: &Namespace) -> Map<String, Value> {
    let fields = &namespace.fields;
    let here = format!("/v2/metadefs/namespaces/{}", fields.namespace);
    let view = json!({
        "namespace": fields.namespace, "display_name": fields.display_name, "description": fields.description,
        "visibility": fields.visibility, "protected": fields.protected, "owner": namespace.owner,
        "created_at": namespace.created_at.zulu(), "updated_at": namespace.updated_at.zulu(),
        "self": here, "schema": "/v2/schemas/metadefs/namespace",
    });
    match view {
        Value::Object(mut view) => {
            view.retain(|_, v| !v.is_null());
            view
        }
        _ => Map::new(),
    }
}

fn definition(namespace: &Namespace, kind: Kind, name: &str, it: &Definition) -> Value {
    let mut view = it.body.clone();
    view.insert("name".into(), name.into());
    if kind != Kind::Property {
        view.insert("created_at".into(), it.created_at.zulu().into());
        view.insert("updated_at".into(), it.updated_at.zulu().into());
    }
    if kind == Kind::Object {
        let here = format!("/v2/metadefs/namespaces/{}/objects/{name}", namespace.fields.namespace);
        view.insert("self".into(), here.into());
        view.insert("schema".into(), "/v2/schemas/metadefs/object".into());
    }
    Value::Object(view)
}

/// All definitions of a kind: properties by name, the others as a list.
fn all(namespace: &Namespace, kind: Kind) -> Value {
    let each = namespace.of(kind).map(|(name, it)| (name, definition(namespace, kind, name, it)));
    match kind {
        Kind::Property => each
            .map(|(name, mut view)| {
                if let Value::Object(view) = &mut view {
                    view.remove("name");
                }
                (name.clone(), view)
            })
            .collect(),
        Kind::Object | Kind::Tag | Kind::ResourceType => each.map(|(_, view)| view).collect(),
    }
}

async fn list(app: App, call: Call) -> Result<Reply> {
    let (state, cx) = (app.cell.read(), cx(&call));
    let wanted = |n: &Namespace| {
        let shown = call.query.get("visibility").is_none_or(|v| n.fields.visibility.word() == v);
        let types = call.query.get("resource_types").map(|t| t.split(','));
        let typed =
            types.is_none_or(|mut types| types.any(|t| n.of(Kind::ResourceType).any(|(r, _)| r == t)));
        shown && typed && sees(&cx, n)
    };
    let found = state.all::<Namespace>().filter(|n| wanted(n));
    let (page, more) = Page::of(&call.query)?.cut(found, |n| n.fields.namespace.clone())?;
    let next = page.last().filter(|_| more).map(|n| api::page::next(&call, &n.fields.namespace));
    let views: Vec<Value> = page.iter().map(|n| Value::Object(view(n))).collect();
    let mut body = json!({"namespaces": views, "first": "/v2/metadefs/namespaces",
        "schema": "/v2/schemas/metadefs/namespaces"});
    if let Some(next) = next {
        body["next"] = next[call.base.len()..].into();
    }
    Ok(Reply::ok(&body))
}

/// The parts of a namespace's body.
struct Parts {
    owner: Option<ProjectId>,
    fields: NamespaceFields,
    definitions: Vec<(Kind, String, Map<String, Value>)>,
}

fn parts(call: &Call) -> Result<Parts> {
    let mut body: Map<String, Value> = call.json()?;
    let owner = body.remove("owner").map(|o| from_value::<String>(o, "owner")).transpose()?;
    let owner =
        owner.map(|o| o.parse().map_err(|_| Error::invalid("owner is a project's id."))).transpose()?;
    let mut definitions = Vec::new();
    for (kind, key) in
        [(Kind::Object, "objects"), (Kind::Tag, "tags"), (Kind::ResourceType, "resource_type_associations")]
    {
        let given: Vec<Map<String, Value>> =
            body.remove(key).map(|v| from_value(v, key)).transpose()?.unwrap_or_default();
        for mut one in given {
            definitions.push((kind, taken_name(&mut one)?, one));
        }
    }
    let properties: Map<String, Value> =
        body.remove("properties").map(|v| from_value(v, "properties")).transpose()?.unwrap_or_default();
    for (name, value) in properties {
        definitions.push((Kind::Property, name.clone(), from_value(value, &name)?));
    }
    for ours in ["self", "schema", "created_at", "updated_at"] {
        body.remove(ours);
    }
    Ok(Parts { owner, fields: from_value(Value::Object(body), "namespace")?, definitions })
}

fn taken_name(body: &mut Map<String, Value>) -> Result<String> {
    for ours in ["self", "schema", "created_at", "updated_at"] {
        body.remove(ours);
    }
    let name = body.remove("name").ok_or_else(|| Error::invalid("'name' is a required property"))?;
    from_value(name, "name")
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let (parts, cx) = (parts(&call)?, cx(&call));
    let owner = parts.owner.unwrap_or(cx.project());
    let name = parts.fields.namespace.clone();
    let made = call.write(&app.cell, move |tx| {
        create(tx, &cx, owner, parts.fields.clone())?;
        for (kind, what, body) in &parts.definitions {
            define(tx, &cx, &parts.fields.namespace, *kind, what, body.clone())?;
        }
        get(tx, &cx, &parts.fields.namespace)
    });
    let made = made.await?;
    let here = format!("{}/v2/metadefs/namespaces/{name}", call.base);
    Ok(Reply::json(StatusCode::CREATED, &whole(&made)).header("location", here))
}

/// A namespace with what it defines.
fn whole(namespace: &Namespace) -> Value {
    let mut view = view(namespace);
    for kind in [Kind::Object, Kind::Property, Kind::Tag, Kind::ResourceType] {
        if namespace.of(kind).next().is_some() {
            view.insert(plural(kind).0.into(), all(namespace, kind));
        }
    }
    Value::Object(view)
}

async fn show(app: App, call: Call) -> Result<Reply> {
    Ok(Reply::ok(&whole(&*get(&app.cell.read(), &cx(&call), &name(&call))?)))
}

async fn change(app: App, call: Call) -> Result<Reply> {
    let (parts, cx, name) = (parts(&call)?, cx(&call), name(&call));
    let made = call.write(&app.cell, move |tx| update(tx, &cx, &name, parts.owner, parts.fields.clone()));
    Ok(Reply::ok(&Value::Object(view(&*made.await?))))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let (cx, name) = (cx(&call), name(&call));
    call.write(&app.cell, move |tx| delete(tx, &cx, &name)).await?;
    Ok(Reply::no_content())
}

async fn definitions(app: App, call: Call, kind: Kind) -> Result<Reply> {
    let namespace = get(&app.cell.read(), &cx(&call), &name(&call))?;
    let (key, path) = plural(kind);
    let here = format!("/v2/metadefs/namespaces/{}/{path}", namespace.fields.namespace);
    Ok(Reply::ok(
        &json!({key: all(&namespace, kind), "first": here, "schema": format!("/v2/schemas/metadefs/{path}")}),
    ))
}

fn found(app: &App, call: &Call, kind: Kind, what: &str) -> Result<Value> {
    let namespace = get(&app.cell.read(), &cx(call), &name(call))?;
    let found = namespace.of(kind).find(|(name, _)| *name == what);
    let found = found.map(|(name, it)| definition(&namespace, kind, name, it));
    found.ok_or_else(|| super::missing("of the namespace", what))
}

async fn one(app: App, call: Call, kind: Kind) -> Result<Reply> {
    Ok(Reply::ok(&found(&app, &call, kind, call.param("name"))?))
}

async fn added(app: App, call: Call, kind: Kind, what: String, body: Map<String, Value>) -> Result<Reply> {
    let (cx, name, to) = (cx(&call), name(&call), what.clone());
    call.write(&app.cell, move |tx| define(tx, &cx, &name, kind, &to, body.clone())).await?;
    Ok(Reply::created(&found(&app, &call, kind, &what)?))
}

async fn add(app: App, call: Call, kind: Kind) -> Result<Reply> {
    let mut body: Map<String, Value> = call.json()?;
    let what = taken_name(&mut body)?;
    added(app, call, kind, what, body).await
}

async fn add_tag(app: App, call: Call) -> Result<Reply> {
    let what = call.param("name").to_string();
    added(app, call, Kind::Tag, what, Map::new()).await
}

/// All tags at once, in the place of those before; `X-Openstack-Append` adds to them.
async fn add_tags(app: App, call: Call) -> Result<Reply> {
    let tags: Vec<Map<String, Value>> = call.json_in("tags")?;
    let names = tags.into_iter().map(|mut t| taken_name(&mut t)).collect::<Result<BTreeSet<String>>>()?;
    let append =
        call.headers.get("x-openstack-append").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"));
    let (cx, name) = (cx(&call), name(&call));
    let view: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
    call.write(&app.cell, move |tx| {
        if !append {
            forget(tx, &cx, &name, Kind::Tag, None)?;
        }
        names.iter().try_for_each(|tag| define(tx, &cx, &name, Kind::Tag, tag, Map::new()))
    })
    .await?;
    Ok(Reply::created(&json!({"tags": view})))
}

async fn replace(app: App, call: Call, kind: Kind) -> Result<Reply> {
    let mut body: Map<String, Value> = call.json()?;
    let to = taken_name(&mut body)?;
    let (cx, name, what) = (cx(&call), name(&call), call.param("name").to_string());
    let new = to.clone();
    call.write(&app.cell, move |tx| redefine(tx, &cx, &name, kind, &what, &new, body.clone())).await?;
    Ok(Reply::ok(&found(&app, &call, kind, &to)?))
}

async fn discard(app: App, call: Call, kind: Kind) -> Result<Reply> {
    let (cx, name, what) = (cx(&call), name(&call), call.param("name").to_string());
    call.write(&app.cell, move |tx| forget(tx, &cx, &name, kind, Some(&what))).await?;
    Ok(Reply::no_content())
}

async fn clear(app: App, call: Call, kind: Kind) -> Result<Reply> {
    let (cx, name) = (cx(&call), name(&call));
    call.write(&app.cell, move |tx| forget(tx, &cx, &name, kind, None)).await?;
    Ok(Reply::no_content())
}

/// The types known from the start, and those that namespaces brought.
async fn types(app: App, _: Call) -> Result<Reply> {
    let state = app.cell.read();
    let brought =
        state.all::<Namespace>().flat_map(|n| n.of(Kind::ResourceType).map(|(name, _)| name.as_str()));
    let names: BTreeSet<&str> = RESOURCE_TYPES.into_iter().chain(brought).collect();
    let types: Vec<Value> = names.into_iter().map(|name| json!({"name": name})).collect();
    Ok(Reply::ok(&json!({"resource_types": types})))
}
