//! Flavors: sizes that servers come in. Their id is a word that an operator may choose.

use crate::App;
use crate::text::{Flag, Name, links, page_links};
use api::page::Page;
use api::{Call, Reply, v};
use base::{Context, Error, ProjectId, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flavor {
    pub id: String,
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    pub vcpus: u32,
    pub ram_mib: u64,
    pub disk_gib: u64,
    #[serde(default)]
    pub ephemeral_gib: u64,
    #[serde(default)]
    pub swap_mib: u64,
    #[serde(default = "one")]
    pub rxtx_factor: f64,
    pub public: bool,
    #[serde(default)]
    pub extra_specs: BTreeMap<String, String>,
    /// The projects that may use one that is not public.
    #[serde(default)]
    pub access: BTreeSet<ProjectId>,
}

fn one() -> f64 {
    1.0
}

const BY_NAME: Index<Flavor> = Index::unique("name", |f, keys| keys.push(f.name.key()));

impl Record for Flavor {
    const KIND: &'static str = "flavor";
    type Key = String;
    const INDEXES: &'static [Index<Flavor>] = &[BY_NAME];

    fn key(&self) -> String {
        self.id.clone()
    }
}

impl Flavor {
    /// A public flavor: for the first start and for tests.
    pub fn simple(id: &str, name: &str, vcpus: u32, ram_mib: u64, disk_gib: u64) -> Flavor {
        Flavor {
            id: id.into(),
            name: name.into(),
            description: None,
            vcpus,
            ram_mib,
            disk_gib,
            ephemeral_gib: 0,
            swap_mib: 0,
            rxtx_factor: 1.0,
            public: true,
            extra_specs: BTreeMap::new(),
            access: BTreeSet::new(),
        }
    }

    fn visible(&self, cx: &Context) -> bool {
        self.public || cx.everywhere || self.access.contains(&cx.project())
    }
}

fn not_found(id: &str) -> Error {
    Error::not_found(format!("Flavor {} could not be found.", id.escape_default()))
}

/// The flavor of an id that the caller may use.
pub fn get(state: &State, cx: &Context, id: &str) -> Result<Arc<Flavor>> {
    state.get::<Flavor>(&id.to_string()).filter(|f| f.visible(cx)).cloned().ok_or_else(|| not_found(id))
}

fn view(call: &Call, flavor: &Flavor, detail: bool) -> Value {
    let mut view = json!({"id": flavor.id, "name": flavor.name, "links": links(call, "flavors", &flavor.id)});
    if call.version >= v(2, 55) {
        view["description"] = json!(flavor.description);
    }
    if detail {
        view["vcpus"] = json!(flavor.vcpus);
        view["ram"] = json!(flavor.ram_mib);
        view["disk"] = json!(flavor.disk_gib);
        view["swap"] = match flavor.swap_mib {
            0 if call.version < v(2, 75) => json!(""),
            n => json!(n),
        };
        view["OS-FLV-EXT-DATA:ephemeral"] = json!(flavor.ephemeral_gib);
        if call.version < v(2, 102) {
            view["OS-FLV-DISABLED:disabled"] = json!(false);
            view["rxtx_factor"] = json!(flavor.rxtx_factor);
        }
        view["os-flavor-access:is_public"] = json!(flavor.public);
        if call.version >= v(2, 61) {
            view["extra_specs"] = json!(flavor.extra_specs);
        }
    }
    view
}

pub async fn list(app: App, call: Call) -> Result<Reply> {
    answer(app, call, false)
}

pub async fn detail(app: App, call: Call) -> Result<Reply> {
    answer(app, call, true)
}

fn answer(app: App, call: Call, detail: bool) -> Result<Reply> {
    let state = app.cell.read();
    let number = |name: &str| -> Result<Option<u64>> {
        let wrong = |_| Error::invalid(format!("Invalid {name} filter: it is a number."));
        call.query.get(name).map(|n| n.parse().map_err(wrong)).transpose()
    };
    let (disk, ram) = (number("minDisk")?, number("minRam")?);
    let public = match call.query.get("is_public") {
        Some(text) if call.cx.everywhere && text.eq_ignore_ascii_case("none") => None,
        _ if !call.cx.everywhere => None,
        _ => call.query.flag("is_public")?.or(Some(true)),
    };
    let mut found: Vec<&Arc<Flavor>> = state.all::<Flavor>().filter(|f| f.visible(&call.cx)).collect();
    found.retain(|f| disk.is_none_or(|d| f.disk_gib >= d) && ram.is_none_or(|r| f.ram_mib >= r));
    found.retain(|f| public.is_none_or(|p| f.public == p));
    sort(&call, &mut found)?;
    let page = Page::of(&call.query)?;
    let (page, more) = page.cut(found, |f| f.id.clone())?;
    let mut body = json!({"flavors": page.iter().map(|f| view(&call, f, detail)).collect::<Vec<_>>()});
    page_links(&call, &mut body, "flavors_links", page.last().map(|f| f.id.as_str()).filter(|_| more));
    Ok(Reply::ok(&body))
}

fn sort(call: &Call, found: &mut [&Arc<Flavor>]) -> Result<()> {
    let down = call.query.get("sort_dir") == Some("desc");
    match call.query.get("sort_key").unwrap_or("flavorid") {
        "flavorid" | "id" => found.sort_by(|a, b| a.id.cmp(&b.id)),
        "name" => found.sort_by(|a, b| a.name.cmp(&b.name)),
        "memory_mb" | "ram" => found.sort_by_key(|f| f.ram_mib),
        "vcpus" => found.sort_by_key(|f| f.vcpus),
        "root_gb" | "disk" => found.sort_by_key(|f| f.disk_gib),
        other => {
            return Err(Error::invalid(format!(
                "Sort key supplied is not valid: {}",
                other.escape_default()
            )));
        }
    }
    if down {
        found.reverse();
    }
    Ok(())
}

pub async fn show(app: App, call: Call) -> Result<Reply> {
    let flavor = get(&app.cell.read(), &call.cx, call.param("id"))?;
    Ok(Reply::ok(&json!({"flavor": view(&call, &flavor, true)})))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFlavor {
    name: Name,
    #[serde(default)]
    id: Option<Value>,
    ram: Value,
    vcpus: Value,
    disk: Value,
    #[serde(rename = "OS-FLV-EXT-DATA:ephemeral", default)]
    ephemeral: Option<Value>,
    #[serde(default)]
    swap: Option<Value>,
    #[serde(default)]
    rxtx_factor: Option<Value>,
    #[serde(rename = "os-flavor-access:is_public", default)]
    public: Option<Flag>,
    #[serde(default)]
    description: Option<String>,
}

fn number(name: &str, value: &Value, min: u64) -> Result<u64> {
    let number = value.as_u64().or_else(|| value.as_str().and_then(|s| s.trim().parse().ok()));
    number.filter(|n| (min..=i32::MAX as u64).contains(n)).ok_or_else(|| {
        Error::invalid(format!(
            "Invalid input for field/attribute {name}. Value: {value}. It is a whole number from {min} on."
        ))
    })
}

pub async fn create(app: App, call: Call) -> Result<Reply> {
    let new: NewFlavor = call.json_in("flavor")?;
    if new.description.is_some() && call.version < v(2, 55) {
        return Err(Error::invalid("Additional properties are not allowed ('description' was unexpected)"));
    }
    let flavor = parse(&new)?;
    let flavor = call
        .write(&app.cell, move |tx| {
            let mut flavor = flavor.clone();
            if flavor.id.is_empty() {
                flavor.id = uuid::Uuid::from_u128(tx.random()).to_string();
            }
            if tx.get::<Flavor>(&flavor.id).is_some() {
                return Err(Error::conflict(format!("Flavor with ID {} already exists.", flavor.id)));
            }
            let name = flavor.name.clone();
            tx.put(flavor).map_err(|_| Error::conflict(format!("Flavor with name {name} already exists.")))
        })
        .await?;
    Ok(Reply::ok(&json!({"flavor": view(&call, &flavor, true)})))
}

fn parse(new: &NewFlavor) -> Result<Flavor> {
    let optional = |name: &str, value: &Option<Value>| match value {
        None | Some(Value::Null) => Ok(0),
        Some(Value::String(s)) if s.is_empty() => Ok(0),
        Some(value) => number(name, value, 0),
    };
    let id = match &new.id {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) if s == "auto" => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        Some(other) => {
            return Err(Error::invalid(format!("Invalid input for field/attribute id. Value: {other}.")));
        }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || " ._-".contains(c);
    if id.len() > 255 || !id.chars().all(plain) || id.trim() != id {
        return Err(Error::invalid(
            "Invalid input for field/attribute id. It has letters, digits, blanks, '.', '-' and '_'.",
        ));
    }
    let factor = match &new.rxtx_factor {
        None | Some(Value::Null) => Some(1.0),
        Some(value) => {
            value.as_f64().or_else(|| value.as_str().and_then(|s| s.parse().ok())).filter(|f| *f > 0.0)
        }
    };
    Ok(Flavor {
        id,
        name: new.name.0.clone(),
        description: new.description.clone(),
        vcpus: number("vcpus", &new.vcpus, 1)? as u32,
        ram_mib: number("ram", &new.ram, 1)?,
        disk_gib: number("disk", &new.disk, 0)?,
        ephemeral_gib: optional("OS-FLV-EXT-DATA:ephemeral", &new.ephemeral)?,
        swap_mib: optional("swap", &new.swap)?,
        rxtx_factor: factor
            .ok_or_else(|| Error::invalid("Invalid input for field/attribute rxtx_factor."))?,
        public: new.public.is_none_or(|f| f.0),
        extra_specs: BTreeMap::new(),
        access: BTreeSet::new(),
    })
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlavorChange {
    description: Option<String>,
}

pub async fn update(app: App, call: Call) -> Result<Reply> {
    let change: FlavorChange = call.json_in("flavor")?;
    let flavor = changed(&app, &call, move |f| {
        f.description = change.description.clone();
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"flavor": view(&call, &flavor, true)})))
}

pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let id = call.param("id").to_string();
    call.write(&app.cell, move |tx| tx.delete::<Flavor>(&id).map(drop).ok_or_else(|| not_found(&id))).await?;
    Ok(Reply::accepted_empty())
}

/// Changes a flavor in a transaction of its own.
async fn changed(
    app: &App,
    call: &Call,
    f: impl Fn(&mut Flavor) -> Result<()> + Send + 'static,
) -> Result<Arc<Flavor>> {
    let (id, cx) = (call.param("id").to_string(), call.cx.clone());
    call.write(&app.cell, move |tx: &mut Tx| {
        let mut flavor = Flavor::clone(&*get(tx, &cx, &id)?);
        f(&mut flavor)?;
        Ok(tx.put(flavor)?)
    })
    .await
}

pub async fn specs(app: App, call: Call) -> Result<Reply> {
    let flavor = get(&app.cell.read(), &call.cx, call.param("id"))?;
    Ok(Reply::ok(&json!({"extra_specs": flavor.extra_specs})))
}

fn spec_missing(flavor: &Flavor, key: &str) -> Error {
    Error::not_found(format!("Flavor {} has no extra specs with key {}.", flavor.id, key.escape_default()))
}

pub async fn spec(app: App, call: Call) -> Result<Reply> {
    let flavor = get(&app.cell.read(), &call.cx, call.param("id"))?;
    let key = call.param("key");
    let value = flavor.extra_specs.get(key).ok_or_else(|| spec_missing(&flavor, key))?;
    Ok(Reply::ok(&json!({key: value})))
}

/// Specs are words and numbers; both are kept as text.
fn spec_texts(map: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let text = |(name, value): (&String, &Value)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || " ._-:".contains(c);
        let value = match value {
            Value::String(s) if s.len() <= 255 => Some(s.clone()),
            Value::Number(n) => Some(n.to_string()),
            _ => None,
        };
        let good = !name.is_empty() && name.len() <= 255 && name.chars().all(plain);
        value.filter(|_| good).map(|v| (name.clone(), v)).ok_or_else(|| {
            Error::invalid(format!(
                "Invalid input for field/attribute extra_specs: {}.",
                name.escape_default()
            ))
        })
    };
    map.iter().map(text).collect()
}

pub async fn add_specs(app: App, call: Call) -> Result<Reply> {
    let specs = spec_texts(&call.json_in("extra_specs")?)?;
    let shown = specs.clone();
    changed(&app, &call, move |f| {
        f.extra_specs.extend(specs.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&json!({"extra_specs": shown})))
}

pub async fn put_spec(app: App, call: Call) -> Result<Reply> {
    let specs = spec_texts(&call.json()?)?;
    if specs.len() != 1 || !specs.contains_key(call.param("key")) {
        return Err(Error::invalid("Request body and URI mismatch"));
    }
    let shown = specs.clone();
    changed(&app, &call, move |f| {
        f.extra_specs.extend(specs.clone());
        Ok(())
    })
    .await?;
    Ok(Reply::ok(&shown))
}

pub async fn delete_spec(app: App, call: Call) -> Result<Reply> {
    let key = call.param("key").to_string();
    changed(&app, &call, move |f| match f.extra_specs.remove(&key) {
        Some(_) => Ok(()),
        None => Err(spec_missing(f, &key)),
    })
    .await?;
    Ok(Reply::ok(&Value::Null).body(Vec::new()))
}

fn access_view(flavor: &Flavor) -> Value {
    let access: Vec<_> =
        flavor.access.iter().map(|p| json!({"flavor_id": flavor.id, "tenant_id": p})).collect();
    json!({"flavor_access": access})
}

pub async fn access(app: App, call: Call) -> Result<Reply> {
    let flavor = get(&app.cell.read(), &call.cx, call.param("id"))?;
    match flavor.public {
        true => Err(Error::not_found("Access list not available for public flavors.")),
        false => Ok(Reply::ok(&access_view(&flavor))),
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Access {
    tenant: String,
}

fn tenant(call: &Call, action: &str) -> Result<ProjectId> {
    let access: Access = call.json_in(action)?;
    access.tenant.parse().map_err(|_| {
        Error::invalid(format!("Project ID {} is not a valid project.", access.tenant.escape_default()))
    })
}

pub async fn add_access(app: App, call: Call) -> Result<Reply> {
    let project = tenant(&call, "addTenantAccess")?;
    let flavor = changed(&app, &call, move |f| match (f.public, f.access.insert(project)) {
        (true, _) => Err(Error::conflict("Can not add access to a public flavor.")),
        (false, false) => Err(Error::conflict(format!(
            "Flavor access already exists for flavor {} and project {project} combination.",
            f.id
        ))),
        (false, true) => Ok(()),
    })
    .await?;
    Ok(Reply::ok(&access_view(&flavor)))
}

pub async fn remove_access(app: App, call: Call) -> Result<Reply> {
    let project = tenant(&call, "removeTenantAccess")?;
    let flavor = changed(&app, &call, move |f| match f.access.remove(&project) {
        true => Ok(()),
        false => {
            Err(Error::not_found(format!("Flavor access not found for {} / {project} combination.", f.id)))
        }
    })
    .await?;
    Ok(Reply::ok(&access_view(&flavor)))
}
