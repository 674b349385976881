//! The way from what was observed to what is wanted, as steps in an order that never opens a hole: rules before the
//! devices they guard, devices gone before their rules, connections forgotten last.
//!
//! Pure. A step is idempotent, and one that fails leaves the others to be done.

use crate::plan::{KNOWN, LEARNED};
use crate::state::{
    BRIDGE, BridgePort, KernelState, Link, LinkKind, MAIN, Place, Route, Set, Space, Station, Table,
    is_group_set,
};
use base::units::Mac;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Elements in one command of a batch.
const ELEMENTS_MAX: usize = 500;

/// One thing to do in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub place: Place,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create,
    Sysctl(String, String),
    LinkRemove(String),
    /// A batch for `nft -f -`: all of it or nothing.
    Nft(String),
    /// The same, of tables that hang on devices.
    Hook(String),
    LinkAdd(String, LinkKind, Option<Mac>),
    LinkSet(String, LinkChange),
    AddressRemove(String, IpNet),
    AddressAdd(String, IpNet),
    RouteRemove(Route),
    RouteAdd(Route),
    MarkRemove(u32),
    MarkAdd(u32),
    NeighbourRemove(String, IpAddr),
    NeighbourSet(String, IpAddr, Mac),
    StationRemove(Station),
    StationSet(Station),
    /// Tells the link who has an address now.
    Announce(String, IpAddr),
    /// Tells the ports of a bridge that another has an address now.
    Introduce(String, IpAddr, Mac),
    /// Deletes the connections of these addresses, so that what is no longer allowed ends at once.
    Forget(BTreeSet<IpAddr>),
    Remove,
}

/// What of a device is to change. `master` of `Some(None)` takes it out of its bridge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkChange {
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub master: Option<Option<String>>,
    pub port: Option<BridgePort>,
    pub up: Option<bool>,
}

impl Step {
    fn phase(&self) -> u8 {
        match &self.action {
            Action::Create => 0,
            Action::Sysctl(key, _) if !of_device(key) => 1,
            Action::LinkRemove(_) => 2,
            Action::Nft(_) => 3,
            Action::LinkAdd(_, LinkKind::Bridge, _) => 4,
            Action::LinkAdd(..) => 5,
            Action::LinkSet(..) => 6,
            Action::Sysctl(..) => 7,
            Action::AddressRemove(..) => 8,
            Action::AddressAdd(..) => 9,
            Action::RouteRemove(_) | Action::MarkRemove(_) => 10,
            Action::RouteAdd(route) if route.via.is_none() => 11,
            Action::RouteAdd(_) | Action::MarkAdd(_) => 12,
            Action::NeighbourRemove(..) => 13,
            Action::NeighbourSet(..) => 14,
            Action::StationRemove(_) => 15,
            Action::StationSet(_) => 16,
            Action::Hook(_) => 17,
            Action::Announce(..) | Action::Introduce(..) => 18,
            Action::Forget(_) => 19,
            Action::Remove => 20,
        }
    }
}

/// Whether a switch is of one device, which must be there first.
fn of_device(key: &str) -> bool {
    let mut parts = key.split('/').skip(2);
    parts.next() == Some("conf") && !matches!(parts.next(), Some("all" | "default") | None)
}

/// The steps from `seen` to `wanted`; none when the kernel is as it should be.
pub fn diff(seen: &KernelState, wanted: &KernelState) -> Vec<Step> {
    let nothing = Space::default();
    let mut steps = Vec::new();
    for (&place, want) in &wanted.places {
        let mut actions = Vec::new();
        if place != Place::Host && !seen.places.contains_key(&place) {
            actions.push(Action::Create);
        }
        space(seen.places.get(&place).unwrap_or(&nothing), want, &mut actions);
        steps.extend(actions.into_iter().map(|action| Step { place, action }));
    }
    for (&place, have) in seen.places.iter().filter(|(place, _)| !wanted.places.contains_key(place)) {
        let mut actions = Vec::new();
        match place {
            Place::Host => space(have, &nothing, &mut actions),
            Place::Network(_) | Place::Router(_) => {
                actions.extend(have.links.iter().filter(|(_, link)| removable(link)).map(removal));
                actions.push(Action::Remove);
            }
        }
        steps.extend(actions.into_iter().map(|action| Step { place, action }));
    }
    steps.sort_by_key(Step::phase);
    steps
}

fn removable(link: &Link) -> bool {
    !matches!(link.kind, LinkKind::Loopback | LinkKind::Foreign)
}

fn removal((name, _): (&String, &Link)) -> Action {
    Action::LinkRemove(name.clone())
}

fn space(seen: &Space, want: &Space, out: &mut Vec<Action>) {
    for (key, value) in &want.sysctls {
        if seen.sysctls.get(key) != Some(value) {
            out.push(Action::Sysctl(key.clone(), value.clone()));
        }
    }
    // What was said of a device goes with it.
    let stays = |device: &String| {
        let (seen, want) = (seen.links.get(device), want.links.get(device));
        seen.zip(want).is_some_and(|(seen, want)| seen.kind.serves(&want.kind))
    };
    links(seen, want, out);
    tables(seen, want, &stays, out);
    out.extend(seen.routes.difference(&want.routes).cloned().map(Action::RouteRemove));
    out.extend(want.routes.difference(&seen.routes).cloned().map(Action::RouteAdd));
    out.extend(seen.marks.difference(&want.marks).copied().map(Action::MarkRemove));
    out.extend(want.marks.difference(&seen.marks).copied().map(Action::MarkAdd));
    for (device, address) in seen.neighbours.keys().filter(|(device, _)| stays(device)) {
        if !want.neighbours.contains_key(&(device.clone(), *address)) {
            out.push(Action::NeighbourRemove(device.clone(), *address));
        }
    }
    // A member of a network that is gone, or another's now: what it had through the router ends.
    let left = seen.neighbours.iter().filter(|((device, _), _)| device.starts_with("qr-") && stays(device));
    let left = left.filter(|(key, mac)| want.neighbours.get(*key) != Some(*mac));
    let left: BTreeSet<IpAddr> = left.map(|((_, address), _)| *address).collect();
    if !left.is_empty() {
        out.push(Action::Forget(left));
    }
    for (key, mac) in &want.neighbours {
        if !stays(&key.0) || seen.neighbours.get(key) != Some(mac) {
            out.push(Action::NeighbourSet(key.0.clone(), key.1, *mac));
            let moved = stays(&key.0) && seen.neighbours.contains_key(key);
            if moved && key.0 == BRIDGE {
                out.push(Action::Introduce(key.0.clone(), key.1, *mac));
            }
        }
    }
    // One that moves to another node is replaced, so that no frame finds none.
    let many = |mac: &Mac| *mac == Mac([0; 6]);
    let kept: BTreeSet<(&String, &Mac)> = want.stations.iter().map(|s| (&s.device, &s.mac)).collect();
    let replaced = |s: &Station| !many(&s.mac) && kept.contains(&(&s.device, &s.mac));
    let gone = seen.stations.difference(&want.stations).filter(|s| stays(&s.device) && !replaced(s));
    out.extend(gone.cloned().map(Action::StationRemove));
    let here = |station: &&Station| stays(&station.device) && seen.stations.contains(station);
    let come = want.stations.iter().filter(|station| !here(station));
    out.extend(come.cloned().map(Action::StationSet));
}

fn links(seen: &Space, want: &Space, out: &mut Vec<Action>) {
    let gone = seen.links.iter().filter(|(_, link)| removable(link));
    out.extend(gone.filter(|(name, _)| !want.links.contains_key(*name)).map(removal));
    let released = seen.links.iter().filter(|(name, link)| {
        link.kind == LinkKind::Foreign && link.master.is_some() && !want.links.contains_key(*name)
    });
    let release = LinkChange { master: Some(None), ..LinkChange::default() };
    out.extend(released.map(|(name, _)| Action::LinkSet(name.clone(), release.clone())));
    for (name, link) in &want.links {
        let known = seen.links.get(name);
        let have = known.filter(|have| have.kind.serves(&link.kind));
        if known.is_some() && have.is_none() {
            out.push(Action::LinkRemove(name.clone()));
        }
        let made = !matches!(link.kind, LinkKind::VethEnd | LinkKind::Loopback | LinkKind::Foreign);
        if have.is_none() && made {
            out.push(Action::LinkAdd(name.clone(), link.kind.clone(), link.mac));
        }
        let change = change(have, link);
        if have.is_some() && change.mac.is_some() && name.starts_with("qg-") {
            let told = link.addresses.iter().map(IpNet::addr).filter(|address| !is_link_local(*address));
            out.extend(told.map(|address| Action::Announce(name.clone(), address)));
        }
        if change != LinkChange::default() {
            out.push(Action::LinkSet(name.clone(), change));
        }
        addresses(name, have, link, out);
    }
}

fn change(have: Option<&Link>, want: &Link) -> LinkChange {
    let differs = |same: &dyn Fn(&Link) -> bool| !have.is_some_and(same);
    LinkChange {
        mac: want.mac.filter(|mac| differs(&|have| have.mac == Some(*mac))),
        mtu: want.mtu.filter(|mtu| differs(&|have| have.mtu == Some(*mtu))),
        master: match have {
            Some(have) if have.master != want.master => Some(want.master.clone()),
            None if want.master.is_some() => Some(want.master.clone()),
            _ => None,
        },
        port: want.port.filter(|port| differs(&|have| have.port == Some(*port))),
        up: if have.map_or(want.up, |have| have.up != want.up) { Some(want.up) } else { None },
    }
}

fn addresses(name: &str, have: Option<&Link>, want: &Link, out: &mut Vec<Action>) {
    let none = BTreeSet::new();
    let have = have.map_or(&none, |have| &have.addresses);
    out.extend(have.difference(&want.addresses).map(|a| Action::AddressRemove(name.to_string(), *a)));
    for address in want.addresses.difference(have) {
        out.push(Action::AddressAdd(name.to_string(), *address));
        let told = !is_link_local(address.addr());
        if told && (name.starts_with("qg-") || name.starts_with("qr-")) {
            out.push(Action::Announce(name.to_string(), address.addr()));
        }
    }
}

/// Nobody asks for such an address of ours.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

fn tables(seen: &Space, want: &Space, stays: &dyn Fn(&String) -> bool, out: &mut Vec<Action>) {
    let (mut batch, mut hooks) = (Vec::new(), Vec::new());
    let mut forget = BTreeSet::new();
    for name in seen.tables.keys().filter(|name| !want.tables.contains_key(*name)) {
        batch.push(format!("delete table {name}"));
    }
    for (name, table) in &want.tables {
        let batch = if table.devices.is_empty() { &mut batch } else { &mut hooks };
        match seen.tables.get(name) {
            Some(have) if have.mark == table.mark && table.devices.iter().all(stays) => {
                update(name, have, table, batch);
                forgotten(have, table, &mut forget);
            }
            have => {
                if have.is_some() {
                    batch.push(format!("delete table {name}"));
                }
                whole(name, table, batch);
            }
        }
    }
    // What has passed the rules that change is asked again.
    let changes = !(batch.is_empty() && hooks.is_empty()) && want.tables.contains_key(KNOWN);
    if let Some(known) = seen.tables.get(KNOWN).filter(|_| changes) {
        let learned = LEARNED.iter().filter(|(name, _)| known.sets.contains_key(*name));
        batch.extend(learned.map(|(name, kind)| format!("flush {kind} {KNOWN} {name}")));
    }
    for (mut batch, action) in [(batch, Action::Nft as fn(String) -> Action), (hooks, Action::Hook)] {
        if !batch.is_empty() {
            batch.push(String::new());
            out.push(action(batch.join("\n")));
        }
    }
    if !forget.is_empty() {
        out.push(Action::Forget(forget));
    }
}

/// A table from nothing.
fn whole(name: &str, table: &Table, batch: &mut Vec<String>) {
    batch.push(format!("add table {name}"));
    for (set, content) in &table.sets {
        batch.push(declaration(name, set, content));
    }
    batch.push(format!("add chain {name} {}", table.mark));
    let (chains, rules): (Vec<_>, Vec<_>) = table.base.iter().partition(|line| !line.starts_with("rule "));
    let place = |line: &String| match line.split_once(' ') {
        Some((kind, rest)) => format!("add {kind} {name} {rest}"),
        None => line.clone(),
    };
    batch.extend(chains.into_iter().map(place));
    for (chain, rules) in &table.chains {
        add_chain(name, chain, rules, batch);
    }
    batch.extend(rules.into_iter().map(place));
    for (set, content) in &table.sets {
        elements("add", name, set, &content.of, &content.elements, batch);
    }
}

fn declaration(table: &str, name: &str, set: &Set) -> String {
    let word = if set.of.contains(':') { "map" } else { "set" };
    format!("add {word} {table} {name} {{ {}; }}", set.of)
}

fn add_chain(table: &str, chain: &str, rules: &[String], batch: &mut Vec<String>) {
    batch.push(format!("add chain {table} {chain}"));
    batch.extend(rules.iter().map(|rule| format!("add rule {table} {chain} {rule}")));
}

/// A table with the same fixed part: chains, group sets and elements one by one. Elements go before the chains that
/// they name, and come after them.
fn update(name: &str, have: &Table, want: &Table, batch: &mut Vec<String>) {
    let empty = Set::default();
    for (set, content) in &want.sets {
        if !have.sets.contains_key(set) {
            batch.push(declaration(name, set, content));
        }
    }
    for (chain, rules) in want.chains.iter().filter(|(chain, _)| !have.chains.contains_key(*chain)) {
        add_chain(name, chain, rules, batch);
    }
    for (set, content) in &want.sets {
        let old = &have.sets.get(set).unwrap_or(&empty).elements;
        elements("delete", name, set, &content.of, &differing(old, &content.elements), batch);
        elements("add", name, set, &content.of, &differing(&content.elements, old), batch);
    }
    for chain in have.chains.keys().filter(|chain| !want.chains.contains_key(*chain)) {
        batch.push(format!("flush chain {name} {chain}"));
        batch.push(format!("delete chain {name} {chain}"));
    }
    for set in have.sets.keys().filter(|set| is_group_set(set) && !want.sets.contains_key(*set)) {
        batch.push(format!("delete set {name} {set}"));
    }
}

/// The elements of `a` that `b` does not have so.
pub fn differing(
    a: &BTreeMap<Vec<String>, String>,
    b: &BTreeMap<Vec<String>, String>,
) -> BTreeMap<Vec<String>, String> {
    let differs = |(key, value): &(&Vec<String>, &String)| b.get(*key) != Some(*value);
    a.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn elements(
    verb: &str,
    table: &str,
    set: &str,
    of: &str,
    content: &BTreeMap<Vec<String>, String>,
    batch: &mut Vec<String>,
) {
    let texts: Vec<String> = content.iter().map(|(key, value)| element(verb, of, key, value)).collect();
    for texts in texts.chunks(ELEMENTS_MAX) {
        batch.push(format!("{verb} element {table} {set} {{ {} }}", texts.join(", ")));
    }
}

/// An element as nft reads it: names of devices in quotes; the value of a map only where it is added.
fn element(verb: &str, of: &str, key: &[String], value: &str) -> String {
    let types = of.trim_start_matches("type ").split([';', ':']).next().unwrap_or_default();
    let quoted = types.split(" . ").zip(key).map(|(kind, part)| match kind.trim() {
        "ifname" => format!("\"{part}\""),
        _ => part.clone(),
    });
    let key = quoted.collect::<Vec<_>>().join(" . ");
    if value.is_empty() || verb == "delete" { key } else { format!("{key} : {value}") }
}

/// Addresses whose connections must be judged again: of ports whose rules changed or went, of members that left a
/// remote group, and of floating addresses that went or moved.
fn forgotten(have: &Table, want: &Table, out: &mut BTreeSet<IpAddr>) {
    let empty = Set::default();
    for (name, old) in &have.sets {
        let new = want.sets.get(name).unwrap_or(&empty);
        let lost = differing(&old.elements, &new.elements);
        match name.as_str() {
            "fip_in" | "forward_tcp" | "forward_udp" => {
                out.extend(lost.keys().filter_map(|key| key.first()?.parse::<IpAddr>().ok()))
            }
            "egress" | "ingress" => {
                let devices: BTreeSet<&String> = lost.keys().filter_map(|key| key.first()).collect();
                out.extend(sources(have, &devices));
            }
            group if is_group_set(group) => {
                out.extend(lost.keys().filter_map(|key| key.first()?.parse::<IpAddr>().ok()));
            }
            _ => {}
        }
    }
}

fn sources<'a>(table: &'a Table, devices: &'a BTreeSet<&String>) -> impl Iterator<Item = IpAddr> + 'a {
    let sets = ["src4", "src6"].into_iter().filter_map(|name| table.sets.get(name));
    let keys = sets.flat_map(|set| set.elements.keys());
    keys.filter(|key| key.first().is_some_and(|device| devices.contains(device)))
        .filter_map(|key| key.last()?.parse().ok())
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{}: ", self.place)?;
        match &self.action {
            Action::Create => write!(out, "create"),
            Action::Remove => write!(out, "remove"),
            Action::Sysctl(key, value) => write!(out, "sysctl {key} = {value}"),
            Action::Nft(batch) | Action::Hook(batch) => {
                write!(out, "nft\n    {}", batch.trim_end().replace('\n', "\n    "))
            }
            Action::LinkAdd(name, kind, mac) => {
                write!(out, "link {name} add {}", kind_text(kind))?;
                mac.map_or(Ok(()), |mac| write!(out, " {mac}"))
            }
            Action::LinkSet(name, change) => write!(out, "link {name} set{change}"),
            Action::LinkRemove(name) => write!(out, "link {name} remove"),
            Action::AddressAdd(name, address) => write!(out, "address {name} add {address}"),
            Action::AddressRemove(name, address) => write!(out, "address {name} remove {address}"),
            Action::RouteAdd(route) => write!(out, "route {} add{}", route.to, route_text(route)),
            Action::RouteRemove(route) => write!(out, "route {} remove{}", route.to, route_text(route)),
            Action::MarkAdd(mark) => write!(out, "mark {mark} add"),
            Action::MarkRemove(mark) => write!(out, "mark {mark} remove"),
            Action::NeighbourSet(name, address, mac) => write!(out, "neighbour {name} {address} is {mac}"),
            Action::NeighbourRemove(name, address) => write!(out, "neighbour {name} {address} remove"),
            Action::StationSet(station) => write!(out, "station {} set", station_text(station)),
            Action::StationRemove(station) => write!(out, "station {} remove", station_text(station)),
            Action::Announce(name, address) => write!(out, "announce {name} {address}"),
            Action::Introduce(name, address, mac) => write!(out, "introduce {name} {address} at {mac}"),
            Action::Forget(addresses) => {
                let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                write!(out, "forget {}", texts.join(" "))
            }
        }
    }
}

fn route_text(route: &Route) -> String {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let device = route.device.as_ref().map(|device| format!(" dev {device}")).unwrap_or_default();
    let table = if route.table == MAIN { String::new() } else { format!(" table {}", route.table) };
    format!("{via}{device}{table}")
}

fn station_text(station: &Station) -> String {
    let to = station.vtep.map(|vtep| format!(" to {vtep}")).unwrap_or_default();
    let of = station.vni.map(|vni| format!(" in {vni}")).unwrap_or_default();
    format!("{} {}{to}{of}", station.device, station.mac)
}

fn kind_text(kind: &LinkKind) -> String {
    match kind {
        LinkKind::Loopback => "loopback".to_string(),
        LinkKind::Bridge => "bridge".to_string(),
        LinkKind::Tap => "tap".to_string(),
        LinkKind::Veth { peer: (place, name) } => format!("veth to {name} in {place}"),
        LinkKind::VethEnd => "veth end".to_string(),
        LinkKind::Foreign => "foreign".to_string(),
        LinkKind::Vxlan { vni, port, local } => format!("vxlan {vni} port {port} local {local}"),
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        if let Some(mac) = self.mac {
            write!(out, " mac {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(out, " mtu {mtu}")?;
        }
        match &self.master {
            Some(Some(master)) => write!(out, " master {master}")?,
            Some(None) => write!(out, " nomaster")?,
            None => {}
        }
        if let Some(port) = self.port {
            let word = |on| if on { "on" } else { "off" };
            write!(out, " learning {} suppress {}", word(port.learning), word(port.suppress))?;
        }
        match self.up {
            Some(true) => write!(out, " up"),
            Some(false) => write!(out, " down"),
            None => Ok(()),
        }
    }
}
