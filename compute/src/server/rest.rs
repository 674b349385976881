//! Servers at the API: create, show, update, delete.

use super::{Fault, Phase, Server, changeable, get, not_found, put, view};
use crate::text::{Count, Flag, Metadata, Name, hostname};
use crate::{App, CORES, INSTANCES, METADATA_ITEMS, RAM, flavor, keypair, schedule};
use api::{Call, Reply, v};
use base::{Context, Error, Id, Kind, ProjectId, Result, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use identity::limit;
use network::network::Network;
use network::port::{self, NewPort, Port, WantedIp};
use network::resource;
use network::security_group::{self, SecurityGroup};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use storage::image::Image;
use store::{State, Tx};

/// Servers of one request, NICs of one server, characters of user data in base64.
const COUNT_MAX: u64 = 100;
const NICS_MAX: usize = 16;
const USER_DATA_MAX: usize = 65_535;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    server: NewServer,
    #[serde(rename = "os:scheduler_hints", alias = "OS-SCH-HNT:scheduler_hints", default)]
    hints: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewServer {
    name: Name,
    #[serde(rename = "imageRef", default)]
    image: Option<String>,
    #[serde(rename = "flavorRef")]
    flavor: Value,
    #[serde(default)]
    networks: Option<Value>,
    #[serde(default)]
    key_name: Option<String>,
    #[serde(default)]
    availability_zone: Option<String>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    user_data: Option<String>,
    #[serde(default)]
    security_groups: Option<Vec<GroupName>>,
    #[serde(default)]
    config_drive: Option<Flag>,
    #[serde(rename = "adminPass", default)]
    admin_pass: Option<String>,
    #[serde(rename = "accessIPv4", default)]
    access_v4: Option<String>,
    #[serde(rename = "accessIPv6", default)]
    access_v6: Option<String>,
    #[serde(default)]
    min_count: Option<Count>,
    #[serde(default)]
    max_count: Option<Count>,
    #[serde(default)]
    return_reservation_id: Option<Flag>,
    #[serde(rename = "OS-DCF:diskConfig", default)]
    disk_config: Option<DiskConfig>,
    #[serde(default)]
    block_device_mapping_v2: Option<Vec<BlockDevice>>,
    #[serde(default)]
    personality: Option<Vec<Value>>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    tags: Option<BTreeSet<String>>,
    #[serde(default)]
    trusted_image_certificates: Option<Vec<String>>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    hypervisor_hostname: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct GroupName {
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
enum DiskConfig {
    #[serde(rename = "AUTO")]
    Auto,
    #[serde(rename = "MANUAL")]
    Manual,
}

#[derive(Clone, Debug, Deserialize)]
struct BlockDevice {
    #[serde(default)]
    source_type: String,
    #[serde(default)]
    destination_type: Option<String>,
    #[serde(default)]
    uuid: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedNic {
    #[serde(default)]
    uuid: Option<Id<Network>>,
    #[serde(default)]
    port: Option<Id<Port>>,
    #[serde(default)]
    fixed_ip: Option<IpAddr>,
    #[serde(default, rename = "tag")]
    _tag: Option<String>,
}

/// Which networks a new server is on.
#[derive(Clone, Debug)]
enum Nics {
    None,
    /// The project's only network; where there is none, it is an error if `required`.
    Auto {
        required: bool,
    },
    These(Vec<WantedNic>),
}

/// What a request asks for, read and checked as far as it goes without the state.
#[derive(Clone, Debug)]
struct Wanted {
    server: NewServer,
    hints: BTreeMap<String, Value>,
    flavor: String,
    image: Id<Image>,
    nics: Nics,
    user_data: Option<Secret>,
    min: u64,
    max: u64,
    access_v4: Option<Ipv4Addr>,
    access_v6: Option<Ipv6Addr>,
}

/// Fields that a microversion does not know yet, or no longer.
fn check_version(call: &Call, new: &NewServer) -> Result<()> {
    let version = call.version;
    let unexpected = [
        ("description", new.description.is_some(), version < v(2, 19)),
        ("tags", new.tags.is_some(), version < v(2, 52)),
        ("trusted_image_certificates", new.trusted_image_certificates.is_some(), version < v(2, 63)),
        ("host", new.host.is_some(), version < v(2, 74)),
        ("hypervisor_hostname", new.hypervisor_hostname.is_some(), version < v(2, 74)),
        ("hostname", new.hostname.is_some(), version < v(2, 90)),
        ("personality", new.personality.is_some(), version >= v(2, 57)),
    ];
    match unexpected.iter().find(|(_, used, absent)| *used && *absent) {
        Some((name, ..)) => {
            Err(Error::invalid(format!("Additional properties are not allowed ('{name}' was unexpected)")))
        }
        None => Ok(()),
    }
}

pub(super) fn bad(field: &str, why: &str) -> Error {
    Error::invalid(format!("Invalid input for field/attribute {field}. {why}"))
}

fn nics(call: &Call, networks: Option<&Value>) -> Result<Nics> {
    let words = call.version >= v(2, 37);
    match networks {
        None if words => Err(bad("server", "'networks' is a required property")),
        None => Ok(Nics::Auto { required: false }),
        Some(Value::String(word)) if words && word == "auto" => Ok(Nics::Auto { required: true }),
        Some(Value::String(word)) if words && word == "none" => Ok(Nics::None),
        Some(list @ Value::Array(_)) => {
            let nics: Vec<WantedNic> = api::call::from_value(list.clone(), "networks")?;
            match nics.len() {
                0 if !words => Ok(Nics::Auto { required: false }),
                0 => Err(bad("networks", "[] is too short")),
                1..=NICS_MAX => Ok(Nics::These(nics)),
                _ => Err(bad("networks", &format!("a server has at most {NICS_MAX}"))),
            }
        }
        Some(other) => Err(bad("networks", &format!("{other} is not valid"))),
    }
}

fn address<T: std::str::FromStr>(field: &str, text: Option<&String>) -> Result<Option<T>> {
    let given = text.filter(|t| !t.is_empty());
    let wrong = |t: &String| bad(field, &format!("'{}' is not an address", t.escape_default()));
    given.map(|t| t.parse().map_err(|_| wrong(t))).transpose()
}

/// The image: named outright, or by the one block device that we offer.
fn image(new: &NewServer) -> Result<Id<Image>> {
    let local = |d: &BlockDevice| d.source_type == "image" && d.destination_type.as_deref() == Some("local");
    let devices = new.block_device_mapping_v2.as_deref().unwrap_or_default();
    if devices.iter().any(|d| !local(d)) {
        return Err(Error::invalid(
            "Block Device Mapping is Invalid: volumes are not offered by this cloud.",
        ));
    }
    let by_device = devices.iter().find_map(|d| d.uuid.as_deref());
    let named = new.image.as_deref().filter(|i| !i.is_empty()).or(by_device);
    let id = named.ok_or_else(|| Error::invalid("Missing imageRef attribute"))?;
    // Old clients send the image's address; its last part is the id.
    let id = id.rsplit('/').next().unwrap_or(id);
    id.parse().map_err(|_| bad("imageRef", &format!("'{}' is not a 'uuid'", id.escape_default())))
}

fn user_data(text: Option<&String>) -> Result<Option<Secret>> {
    let Some(text) = text else { return Ok(None) };
    if text.len() > USER_DATA_MAX {
        return Err(bad("user_data", &format!("it is longer than {USER_DATA_MAX} characters")));
    }
    STANDARD.decode(text.replace(['\n', '\r'], "")).map_err(|_| bad("user_data", "it is not base64"))?;
    Ok(Some(Secret::new(text)))
}

fn parse(call: &Call) -> Result<Wanted> {
    let Create { server, hints } = call.json()?;
    check_version(call, &server)?;
    let min = server.min_count.map_or(1, |c| c.0);
    let max = server.max_count.map_or(min, |c| c.0);
    if min < 1 || max < min || max > COUNT_MAX {
        return Err(Error::invalid(format!("min_count must be <= max_count, both from 1 to {COUNT_MAX}")));
    }
    if server.personality.as_ref().is_some_and(|p| !p.is_empty()) {
        return Err(bad("personality", "file injection is not offered; use user_data"));
    }
    if server.metadata.0.len() as i64 > METADATA_ITEMS.default {
        return Err(Error::forbidden("Maximum number of metadata items exceeds 128"));
    }
    let flavor = match &server.flavor {
        Value::String(s) if !s.is_empty() => s.rsplit('/').next().unwrap_or(s).to_string(),
        Value::Number(n) => n.to_string(),
        other => return Err(bad("flavorRef", &format!("{other} is not the id of a flavor"))),
    };
    Ok(Wanted {
        flavor,
        image: image(&server)?,
        nics: nics(call, server.networks.as_ref())?,
        user_data: user_data(server.user_data.as_ref())?,
        min,
        max,
        access_v4: address("accessIPv4", server.access_v4.as_ref())?,
        access_v6: address("accessIPv6", server.access_v6.as_ref())?,
        server,
        hints,
    })
}

/// POST /servers: one transaction makes servers, ports, addresses, quota and claims.
pub async fn create(app: App, call: Call) -> Result<Reply> {
    let wanted = parse(&call)?;
    if wanted.server.availability_zone.as_deref().is_some_and(|z| z.contains(':')) {
        call.require("os_compute_api:servers:create:forced_host", &Default::default())?;
    }
    if wanted.server.host.is_some() || wanted.server.hypervisor_hostname.is_some() {
        call.require("compute:servers:create:requested_destination", &Default::default())?;
    }
    let (cx, asked) = (call.cx.clone(), wanted.clone());
    let (first, password) = call.write(&app.cell, move |tx| make_all(tx, &cx, &asked)).await?;
    if wanted.server.return_reservation_id.is_some_and(|f| f.0) {
        return Ok(Reply::accepted(&json!({"reservation_id": first.reservation})));
    }
    let mut view = json!({
        "id": first.id, "links": crate::text::links(&call, "servers", &first.id.to_string()),
        "OS-DCF:diskConfig": view::disk_config(&first), "adminPass": password.expose(),
    });
    let state = app.cell.read();
    let groups = view::groups(&state, &view::ports(&state, &first));
    view["security_groups"] = if groups.is_empty() { json!([{"name": "default"}]) } else { json!(groups) };
    let location = format!("{}/v2.1/servers/{}", call.base, first.id);
    Ok(Reply::accepted(&json!({"server": view})).header("location", location))
}

fn make_all(tx: &mut Tx, cx: &Context, wanted: &Wanted) -> Result<(Arc<Server>, Secret)> {
    let flavor = flavor::get(tx, cx, &wanted.flavor).map_err(|e| Error::invalid(e.message()))?;
    check_image(tx, cx, wanted.image, &flavor)?;
    let count = affordable(tx, cx.project(), &flavor, wanted)?;
    let template = template(tx, cx, wanted, flavor)?;
    let mut first = None;
    for index in 0..count {
        let mut server = template.clone();
        server.id = tx.new_id();
        server.launch_index = index as u32;
        if count > 1 {
            server.name = format!("{}-{}", template.name, index + 1);
        }
        let given = wanted.server.hostname.clone();
        server.hostname = given.unwrap_or_else(|| hostname(&server.name, &server.id.to_string()));
        let made = start(tx, cx, wanted, server)?;
        first.get_or_insert(made);
    }
    Ok((first.expect("count is at least one"), template.admin_pass.unwrap_or_default()))
}

/// Twelve letters and digits.
fn word(mut random: u128) -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut next = || {
        let letter = LETTERS[(random % LETTERS.len() as u128) as usize];
        random /= LETTERS.len() as u128;
        letter as char
    };
    (0..12).map(|_| next()).collect()
}

fn check_image(tx: &Tx, cx: &Context, id: Id<Image>, flavor: &flavor::Flavor) -> Result<()> {
    let missing = |_| Error::invalid(format!("Image {id} could not be found."));
    let image = storage::image::get(tx, cx, id).map_err(missing)?;
    if !image.is_active() {
        return Err(Error::invalid(format!("Image {id} is not active.")));
    }
    if flavor.ram_mib < image.min_ram_mib() {
        return Err(Error::invalid("Flavor's memory is too small for requested image."));
    }
    let needed = image.min_disk_gib().max(image.size_needed().div_ceil(1 << 30));
    match flavor.disk_gib != 0 && flavor.disk_gib < needed {
        true => Err(Error::invalid(format!(
            "Flavor's disk is too small for requested image. Flavor disk is {} GiB, image needs {needed} GiB.",
            flavor.disk_gib
        ))),
        false => Ok(()),
    }
}

/// How many of the wanted servers the quota has room for; at least `min`.
fn affordable(tx: &Tx, project: ProjectId, flavor: &flavor::Flavor, wanted: &Wanted) -> Result<u64> {
    let claim = |n: u64| {
        limit::claim(tx, project, &INSTANCES, n as i64)?;
        limit::claim(tx, project, &CORES, n as i64 * i64::from(flavor.vcpus))?;
        limit::claim(tx, project, &RAM, n as i64 * flavor.ram_mib as i64)
    };
    let fits = (wanted.min..=wanted.max).rev().find(|n| claim(*n).is_ok());
    fits.map_or_else(|| claim(wanted.min).map(|()| wanted.min), Ok)
}

/// What the servers of one request have in common.
fn template(tx: &mut Tx, cx: &Context, wanted: &Wanted, flavor: Arc<flavor::Flavor>) -> Result<Server> {
    let new = &wanted.server;
    let (zone, host) = place(tx, new)?;
    let key = |name: &String| {
        let pair = keypair::get(tx, cx.user(), name);
        pair.map_err(|_| Error::invalid(format!("Invalid key_name provided: {}", name.escape_default())))
    };
    let public_key = new.key_name.as_ref().map(key).transpose()?.map(|pair| pair.public_key.clone());
    let password = new.admin_pass.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| word(tx.random()));
    Ok(Server {
        id: Id::ZERO,
        project: cx.project(),
        user: cx.user(),
        hostname: String::new(),
        name: new.name.0.clone(),
        description: new.description.clone(),
        flavor: (*flavor).clone(),
        image: Some(wanted.image),
        key_name: new.key_name.clone(),
        public_key,
        metadata: new.metadata.0.clone(),
        tags: new.tags.clone().unwrap_or_default(),
        zone,
        host,
        created: tx.now(),
        updated: tx.now(),
        launched: None,
        desired: base::node::Power::On,
        reboots: 0,
        reboot_hard: false,
        phase: Phase::Settled,
        observed: None,
        fault: None,
        config_drive: new.config_drive.is_some_and(|f| f.0),
        user_data: wanted.user_data.clone(),
        admin_pass: Some(Secret::new(password)),
        password: String::new(),
        access_v4: wanted.access_v4,
        access_v6: wanted.access_v6,
        disk_manual: new.disk_config == Some(DiskConfig::Manual),
        locked: false,
        locked_reason: None,
        own_ports: BTreeSet::new(),
        reservation: format!("r-{:08x}", tx.random() as u32),
        launch_index: 0,
        hints: wanted.hints.clone(),
    })
}

/// Finds a place, plugs the NICs, and puts the record: that is the claim.
fn start(tx: &mut Tx, cx: &Context, wanted: &Wanted, mut server: Server) -> Result<Arc<Server>> {
    let request =
        schedule::Request { need: server.need(), zone: server.zone.clone(), host: server.host.take() };
    match schedule::choose(tx, &request) {
        Ok(node) => server.host = Some(node.to_string()),
        Err(e) if e.kind() == Kind::NotFound => {
            server.fault = Some(Fault { code: 500, message: e.message().into(), created: tx.now() });
        }
        Err(e) => return Err(e),
    }
    plug_all(tx, cx, &mut server, wanted)?;
    put(tx, server)
}

/// The zone and node that the request names: `zone`, `zone:host`, or `host`.
fn place(state: &State, new: &NewServer) -> Result<(Option<String>, Option<String>)> {
    let mut words = new.availability_zone.as_deref().unwrap_or("").split(':');
    let zone = words.next().filter(|z| !z.is_empty()).map(str::to_string);
    let forced = words.next().filter(|h| !h.is_empty()).map(str::to_string);
    let host = forced.or_else(|| new.host.clone()).or_else(|| new.hypervisor_hostname.clone());
    if let Some(host) = &host
        && fleet::node::named(state, host).is_none()
    {
        return Err(Error::invalid(format!("Compute host {} could not be found.", host.escape_default())));
    }
    let known = |zone: &str| zone == fleet::node::ZONE || state.all::<fleet::Node>().any(|n| n.zone == zone);
    match zone.as_deref().is_none_or(known) {
        true => Ok((zone, host)),
        false => Err(Error::invalid("The requested availability zone is not available")),
    }
}

fn plug_all(tx: &mut Tx, cx: &Context, server: &mut Server, wanted: &Wanted) -> Result<()> {
    let names = wanted.server.security_groups.as_ref();
    let groups = match names {
        Some(names) => {
            Some(names.iter().map(|g| find_group(tx, cx, &g.name)).collect::<Result<BTreeSet<_>>>()?)
        }
        None => None,
    };
    let nics = match &wanted.nics {
        Nics::None => Vec::new(),
        Nics::These(nics) => nics.clone(),
        Nics::Auto { required } => match network::network::automatic(tx, cx.project())? {
            Some(id) => vec![WantedNic { uuid: Some(id), ..WantedNic::default() }],
            None if *required => {
                let why = "Unable to automatically allocate a network: the project has none with a subnet.";
                return Err(Error::invalid(why));
            }
            None => Vec::new(),
        },
    };
    nics.iter().try_for_each(|nic| plug(tx, cx, server, nic, groups.clone()))
}

/// A security group of the caller's project, by name or id.
pub fn find_group(tx: &mut Tx, cx: &Context, name: &str) -> Result<Id<SecurityGroup>> {
    security_group::default(tx, cx.project())?;
    let mut named = tx.by(&security_group::BY_NAME, (cx.project(), name)).map(|g| g.id);
    match (named.next(), named.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(Error::conflict(format!(
            "Multiple security groups found matching '{}'. Use an ID to be more specific.",
            name.escape_default()
        ))),
        (None, _) => {
            let group = name.parse().ok().and_then(|id| resource::get::<SecurityGroup>(tx, cx, id).ok());
            let missing = || Error::invalid(format!("Security group {} not found.", name.escape_default()));
            group.map(|g| g.id).ok_or_else(missing)
        }
    }
}

fn plug(
    tx: &mut Tx,
    cx: &Context,
    server: &mut Server,
    nic: &WantedNic,
    groups: Option<BTreeSet<Id<SecurityGroup>>>,
) -> Result<()> {
    if let Some(id) = nic.port {
        return plug_port(tx, cx, server, id).map(drop);
    }
    let id = nic.uuid.ok_or_else(|| bad("networks", "a network needs uuid or port"))?;
    let network = resource::get::<Network>(tx, cx, id);
    let network = network.map_err(|_| Error::invalid(format!("Network {id} could not be found.")))?;
    let shared = network::rbac::shared(tx, network.id, cx);
    if network.is_external(tx) && !shared && !cx.sees(network.meta.project) {
        return Err(Error::forbidden(format!(
            "It is not allowed to create an interface on external network {id}"
        )));
    }
    if tx.by(&network::subnet::BY_NETWORK, network.id).next().is_none() {
        return Err(Error::invalid(format!("Network {id} requires a subnet in order to boot instances on.")));
    }
    plug_network(tx, server, id, nic.fixed_ip, groups.filter(|_| network.port_security)).map(drop)
}

/// `compute:ZONE`, as clients read whose a port is.
fn owner(server: &Server) -> String {
    format!("compute:{}", server.zone.as_deref().unwrap_or(fleet::node::ZONE))
}

/// Binds a port that its user made.
pub fn plug_port(tx: &mut Tx, cx: &Context, server: &Server, id: Id<Port>) -> Result<Arc<Port>> {
    let port = resource::own::<Port>(tx, cx, id);
    let port = port.map_err(|_| Error::invalid(format!("Port {id} could not be found.")))?;
    if port.meta.project != server.project {
        return Err(Error::invalid(format!("Port {id} not usable for instance {}.", server.id)));
    }
    if !port.device.is_empty() {
        return Err(Error::conflict(format!("Port {id} is still in use.")));
    }
    if port.dns_name.is_empty() {
        port::change(tx, id, |port| port.dns_name = server.hostname.clone())?;
    }
    port::bind(tx, id, &server.id.to_string(), &owner(server), server.host.as_deref().unwrap_or(""))
}

/// Makes a port that goes with the server.
pub fn plug_network(
    tx: &mut Tx,
    server: &mut Server,
    network: Id<Network>,
    fixed: Option<IpAddr>,
    groups: Option<BTreeSet<Id<SecurityGroup>>>,
) -> Result<Arc<Port>> {
    let new = NewPort {
        network,
        device: server.id.to_string(),
        owner: owner(server),
        host: server.host.clone().unwrap_or_default(),
        fixed: fixed.map(|address| vec![WantedIp { subnet: None, address: Some(address) }]),
        groups,
        dns_name: server.hostname.clone(),
        ..NewPort::default()
    };
    let port = port::create(tx, server.project, &new).map_err(as_nova)?;
    server.own_ports.insert(port.id);
    Ok(port)
}

/// Neutron's errors in the kinds that Nova answers them with.
fn as_nova(error: Error) -> Error {
    match error.name() {
        Some("InvalidIpForNetwork" | "InvalidIpForSubnet" | "IpAddressAlreadyAllocated") => {
            Error::invalid(format!("Fixed IP address is in use or not valid: {}", error.message()))
        }
        _ => error,
    }
}

/// The server named in the path.
pub fn id(call: &Call) -> Result<Id<Server>> {
    call.param("id").parse().map_err(|_| not_found(call.param("id")))
}

fn alone(call: &Call, state: &State, server: &Server) -> Reply {
    Reply::written(StatusCode::OK, |body| {
        body.object("server", |view| view::full(call, state, server, view::Shown::Alone, view))
    })
}

pub async fn show(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let server = get(&state, &call.cx, id(&call)?)?;
    Ok(alone(&call, &state, &server))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    name: Option<Name>,
    #[serde(rename = "accessIPv4")]
    access_v4: Option<String>,
    #[serde(rename = "accessIPv6")]
    access_v6: Option<String>,
    #[serde(rename = "OS-DCF:diskConfig")]
    disk_config: Option<DiskConfig>,
    #[serde(default, deserialize_with = "network::attr::nullable")]
    description: Option<Option<String>>,
    hostname: Option<String>,
}

/// PUT /servers/{id}
pub async fn update(app: App, call: Call) -> Result<Reply> {
    let id = id(&call)?;
    let change: Change = call.json_in("server")?;
    let early = |used: bool, since| used && call.version < since;
    if early(change.description.is_some(), v(2, 19)) || early(change.hostname.is_some(), v(2, 90)) {
        return Err(Error::invalid("Additional properties are not allowed"));
    }
    let v4 = address::<Ipv4Addr>("accessIPv4", change.access_v4.as_ref())?;
    let v6 = address::<Ipv6Addr>("accessIPv6", change.access_v6.as_ref())?;
    let cx = call.cx.clone();
    let server = call
        .write(&app.cell, move |tx| {
            let mut server = Server::clone(&*get(tx, &cx, id)?);
            server.name = change.name.clone().map_or(server.name, |n| n.0);
            server.access_v4 = change.access_v4.as_ref().map_or(server.access_v4, |_| v4);
            server.access_v6 = change.access_v6.as_ref().map_or(server.access_v6, |_| v6);
            server.disk_manual = change.disk_config.map_or(server.disk_manual, |c| c == DiskConfig::Manual);
            server.description = change.description.clone().unwrap_or(server.description);
            server.hostname = change.hostname.clone().unwrap_or(server.hostname);
            put(tx, server)
        })
        .await?;
    Ok(alone(&call, &app.cell.read(), &server))
}

/// DELETE /servers/{id}, and the action forceDelete
pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (id(&call)?, call.cx.clone());
    call.write(&app.cell, move |tx| match get(tx, &cx, id)?.phase {
        Phase::Deleting => Ok(()),
        Phase::Settled => {
            let server = changeable(tx, &cx, id)?;
            super::delete(tx, &server)
        }
    })
    .await?;
    Ok(Reply::no_content())
}
