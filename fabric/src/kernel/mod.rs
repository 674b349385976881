//! The kernel of this node: reads it back as a `KernelState` and takes the steps of a `diff`.
//!
//! Every namespace has one handle with its netlink sockets. Handles follow the names below `/run/netns`; a namespace
//! that was removed and made again by someone else is seen as the new one it is.

pub mod announce;
pub mod conntrack;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod probe;
pub mod route;
mod rules;
pub mod tap;
pub mod uplink;

use crate::diff::{Action, Step};
use crate::plan::{Powers, Tracking};
use crate::state::{KernelState, Place, Space, Table, follow_tables};
use base::{Error, Result};
use conntrack::Which;
use netlink::Netlink;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Between announcements of one address: Linux takes no other answer for a second after one, so the third is heard.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(600);

/// What `powers` tries.
const FLOWTABLE: &str = "add table inet t
add flowtable inet t f { hook ingress priority 0; devices = { lo }; }
add chain inet t c { type filter hook forward priority 0; }
add rule inet t c ct state established flow add @f
";
const SHORTCUT: &str = "add table netdev t
add chain netdev t c { type filter hook ingress device \"lo\" priority 0; }
add rule netdev t c ip ttl > 1 fwd ip to ip daddr device \"lo\"
add rule netdev t c fwd to \"lo\"
";

const KNOWN: &str = "add table netdev t
add set netdev t s { type ether_addr . ipv4_addr . ipv4_addr . inet_service . inet_service; size 9; flags dynamic,timeout; timeout 2s; }
add chain netdev t c { type filter hook egress device \"lo\" priority 0; }
add rule netdev t c meta l4proto 17 add @s { ether daddr . ip saddr . ip daddr . th sport . th dport }
add chain netdev t d { type filter hook ingress device \"lo\" priority 0; }
add rule netdev t d ether daddr . ip saddr . ip daddr . th sport . th dport @s fwd to \"lo\"
add map netdev t m { type ipv4_addr . ipv4_addr . inet_service . inet_service : iface_index; size 9; flags dynamic,timeout; timeout 2s; }
add rule netdev t c meta l4proto 17 add @m { ip saddr . ip daddr . th sport . th dport : \"lo\" }
add rule netdev t d ether saddr 02:00:00:00:00:01 ether saddr set 02:00:00:00:00:02
add rule netdev t d meta l4proto 17 fwd ip to ip daddr device ip saddr . ip daddr . th sport . th dport map @m
";

/// Places that are worked on at once.
const THREADS: usize = 4;

pub struct Kernel {
    cloud: u32,
    spaces: BTreeMap<Place, Mutex<Handle>>,
}

/// One namespace: itself, its sockets, and its rules as listed at a generation of theirs.
pub struct Handle {
    namespace: OwnedFd,
    inode: u64,
    route: Netlink,
    netfilter: Netlink,
    rules: Option<(u32, BTreeMap<String, Table>)>,
    /// What is kept of them for the next process.
    kept: Option<rules::File>,
    ours: Option<Ours>,
}

/// Our batches since the rules were kept last.
struct Ours {
    /// The generations before the first and after the last.
    from: u32,
    to: u32,
    count: u32,
}

impl Ours {
    /// Nobody else's came between.
    fn alone(&self) -> bool {
        self.to == self.from.wrapping_add(self.count)
    }
}

impl Handle {
    fn open(namespace: OwnedFd) -> Result<Handle> {
        let sockets = netns::inside(namespace.as_fd(), || Ok((Netlink::route()?, Netlink::netfilter()?)));
        let (route, netfilter) = sockets?;
        let inode = fs::File::from(namespace.try_clone()?).metadata()?.ino();
        Ok(Handle { namespace, inode, route, netfilter, rules: None, kept: None, ours: None })
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(self.namespace.as_fd(), work)
    }

    /// The tables, listed only when someone changed them since.
    fn tables(&mut self) -> Result<BTreeMap<String, Table>> {
        let now = nft::generation(&mut self.netfilter)?;
        if let Some((at, tables)) = &self.rules
            && *at == now
        {
            return Ok(tables.clone());
        }
        let tables = self.inside(nft::list)?;
        self.rules = Some((now, tables.clone()));
        Ok(tables)
    }

    fn nft(&mut self, batch: &str) -> Result<()> {
        let before = nft::generation(&mut self.netfilter)?;
        self.inside(|| nft::apply(batch))?;
        let after = nft::generation(&mut self.netfilter)?;
        let ours = self.ours.get_or_insert(Ours { from: before, to: before, count: 0 });
        (ours.to, ours.count) = (after, ours.count + 1);
        Ok(())
    }

    /// `seen`: what the rules that change were before our batches; none, or nothing: `now` is all of them.
    fn keep(
        &mut self,
        cloud: u32,
        name: &str,
        ours: Ours,
        seen: Option<&BTreeMap<String, Table>>,
        now: &BTreeMap<String, Table>,
    ) {
        let known = self.rules.take();
        let (tables, added) = match (seen.filter(|seen| !seen.is_empty()), known) {
            (None, _) => (now.clone(), false),
            (Some(seen), Some((at, mut tables))) if at == ours.from => {
                follow_tables(&mut tables, seen, now);
                let added = self.kept.as_mut().is_some_and(|kept| kept.add((ours.from, ours.to), seen, now));
                (tables, added)
            }
            // What they were before is not known.
            (Some(_), _) => {
                self.kept = None;
                return rules::drop_one(cloud, name);
            }
        };
        if !added {
            self.kept = rules::keep(cloud, name, (self.inode, ours.to), &tables);
        }
        self.rules = Some((ours.to, tables));
    }
}

impl Kernel {
    /// Enters the kernel from the calling thread's namespace, which is the host's from now on.
    pub fn open(cloud: u32) -> Result<Kernel> {
        let host = Mutex::new(Handle::open(netns::current()?)?);
        Ok(Kernel { cloud, spaces: [(Place::Host, host)].into() })
    }

    pub fn namespace(&self, place: Place) -> Result<OwnedFd> {
        Ok(self.handle(place)?.namespace.try_clone()?)
    }

    pub fn handle(&self, place: Place) -> Result<MutexGuard<'_, Handle>> {
        let handle = self.spaces.get(&place);
        let handle = handle.ok_or_else(|| Error::not_found(format!("there is no namespace for {place}")))?;
        Ok(handle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What this kernel can do: each thing is really made, in a namespace that ends with the trial.
    pub fn powers(&self) -> Result<Powers> {
        let tracking = self.tracking()?;
        let made = |batch: &str| netns::inside(netns::unnamed()?, || Ok(nft::apply(batch).is_ok()));
        Ok(Powers { tracking, flowtable: made(FLOWTABLE)?, shortcuts: made(SHORTCUT)?, known: made(KNOWN)? })
    }

    /// Whether bridged packets can be tracked, and how.
    fn tracking(&self) -> Result<Tracking> {
        let made = |batch: &str| netns::inside(netns::unnamed()?, || Ok(nft::apply(batch).is_ok()));
        if made("add table bridge t\nadd chain bridge t c\nadd rule bridge t c ct state new accept\n")? {
            return Ok(Tracking::Bridge);
        }
        if !made("add table bridge t\nadd chain bridge t c { type filter hook prerouting priority 0; }\n")? {
            return Err(Error::unavailable("nft cannot make tables of the bridge family on this node"));
        }
        if !Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
            return Err(Error::unavailable(
                "neither nf_conntrack_bridge nor br_netfilter is loaded in this kernel",
            ));
        }
        Ok(Tracking::BrNetfilter)
    }

    /// Follows the names of our namespaces.
    fn follow(&mut self) -> Result<()> {
        let cloud = self.cloud;
        let named = netns::names().into_iter().filter_map(|name| Some((Place::parse(&name, cloud)?, name)));
        let found = each(named.collect(), |(place, name)| {
            let Ok(namespace) = netns::open(&name) else { return Ok::<_, Error>(None) };
            let inode = fs::File::from(namespace.try_clone()?).metadata()?.ino();
            if self.handle(place).is_ok_and(|handle| handle.inode == inode) {
                return Ok(Some((place, None)));
            }
            // A crash while making it leaves a name without a namespace, which cannot be entered.
            let Ok(mut handle) = Handle::open(namespace) else {
                netns::remove(&name)?;
                return Ok(None);
            };
            handle.rules = rules::kept(cloud, &name, inode);
            Ok(Some((place, Some(handle))))
        });
        let mut places = BTreeSet::from([Place::Host]);
        for found in found {
            let Some((place, handle)) = found? else { continue };
            places.insert(place);
            handle.and_then(|handle| self.spaces.insert(place, Mutex::new(handle)));
        }
        self.spaces.retain(|place, _| places.contains(place));
        Ok(())
    }

    /// What is there of this cloud. Switches are read as far as `wanted` names them.
    pub fn observe(&mut self, wanted: &KernelState) -> Result<KernelState> {
        self.follow()?;
        let places = self.spaces.keys().copied().collect();
        self.observe_of(wanted, places)
    }

    /// Some places of it.
    pub fn observe_of(&self, wanted: &KernelState, places: BTreeSet<Place>) -> Result<KernelState> {
        let none = BTreeMap::new();
        let here = places.into_iter().filter(|place| self.spaces.contains_key(place)).collect();
        let seen = each(here, |place| {
            let keys = wanted.places.get(&place).map_or(&none, |space| &space.sysctls);
            let space = observe_space(place, self.cloud, &mut *self.handle(place)?, keys)?;
            Ok::<_, Error>((place, space))
        });
        let mut out = KernelState::default();
        for seen in seen {
            let (place, space) = seen?;
            let empty = space.links.is_empty() && space.tables.is_empty();
            if place != Place::Host || !empty {
                out.places.insert(place, space);
            }
        }
        Ok(out)
    }

    /// Takes the steps, those of different places at once where they do not wait for each other. One that fails is told
    /// and the others are taken.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<(Place, Error)> {
        let mut failures = Vec::new();
        for stage in steps.chunk_by(|a, b| stage(a) == stage(b)) {
            match stage.first().map(|step| &step.action) {
                Some(Action::Create) => failures.extend(self.create(stage)),
                Some(Action::Remove) => failures.extend(self.remove(stage)),
                _ => failures.extend(self.take_all(stage)),
            }
        }
        self.announce_again(steps);
        failures
    }

    fn take_all(&self, stage: &[Step]) -> Vec<(Place, Error)> {
        let mut places: BTreeMap<Place, Vec<&Step>> = BTreeMap::new();
        for step in stage {
            places.entry(step.place).or_default().push(step);
        }
        let failures = each(places.into_values().collect(), |steps| {
            let failed = |step: &&Step| Some(failure(step, self.take(step).err()?));
            let (switches, others) = switches(&steps);
            let mut failures = self.switch_all(switches);
            failures.extend(others.iter().filter_map(failed));
            failures
        });
        failures.into_iter().flatten().collect()
    }

    /// Switches of one namespace, by one thread in it.
    fn switch_all(&self, steps: &[&Step]) -> Vec<(Place, Error)> {
        let Some(first) = steps.first() else { return Vec::new() };
        let set = |step: &&Step| match &step.action {
            Action::Sysctl(key, value) => Some(failure(step, write_sysctl(key, value).err()?)),
            _ => None,
        };
        let handle = self.handle(first.place);
        let done = handle.and_then(|handle| handle.inside(|| Ok(steps.iter().filter_map(set).collect())));
        done.unwrap_or_else(|error| vec![failure(first, error)])
    }

    /// Remembers that the rules are as they were wanted, where our batches were the last changes of them.
    /// `known`: what they were before, as far as it is said; none: `wanted` has all of the places.
    pub fn keep(&self, known: Option<&KernelState>, wanted: &KernelState) {
        let none = BTreeMap::new();
        for (&place, space) in &wanted.places {
            let (Some(name), Ok(mut handle)) = (place.name(self.cloud), self.handle(place)) else { continue };
            let Some(ours) = handle.ours.take() else { continue };
            if ours.alone() {
                let seen = known.map(|known| known.places.get(&place).map_or(&none, |space| &space.tables));
                handle.keep(self.cloud, &name, ours, seen, &space.tables);
            } else {
                handle.kept = None;
                rules::drop_one(self.cloud, &name);
            }
        }
    }

    /// Forgets what is kept for the next process.
    pub fn keep_nothing(&self) {
        rules::drop_all(self.cloud);
    }

    /// A frame may be lost: what is announced is so twice more.
    fn announce_again(&self, steps: &[Step]) {
        let told = steps.iter().filter_map(|step| match &step.action {
            Action::Announce(name, address) => {
                Some((self.namespace(step.place).ok()?, name.clone(), *address))
            }
            _ => None,
        });
        let told: Vec<_> = told.collect();
        if told.is_empty() {
            return;
        }
        std::thread::spawn(move || {
            for _ in 0..2 {
                std::thread::sleep(AGAIN);
                for (namespace, name, address) in &told {
                    // The device may be gone by now.
                    let _ = netns::inside(namespace, || announce::announce(name, *address));
                }
            }
        });
    }

    fn take(&self, step: &Step) -> Result<()> {
        let place = step.place;
        match &step.action {
            // Stages of their own.
            Action::Create | Action::Remove => Ok(()),
            Action::Sysctl(key, value) => self.sysctl(place, key, value),
            Action::Nft(batch) | Action::Hook(batch) => self.handle(place)?.nft(batch),
            Action::LinkAdd(name, kind, mac) => link::add(self, place, name, kind, *mac),
            Action::LinkSet(name, change) => link::set(&mut self.handle(place)?.route, name, change),
            Action::LinkRemove(name) => link::remove(&mut self.handle(place)?.route, name),
            Action::AddressAdd(name, address) => {
                link::address(&mut self.handle(place)?.route, name, *address, true)
            }
            Action::AddressRemove(name, address) => {
                link::address(&mut self.handle(place)?.route, name, *address, false)
            }
            Action::RouteAdd(route) => route::set(&mut self.handle(place)?.route, route, true),
            Action::RouteRemove(route) => route::set(&mut self.handle(place)?.route, route, false),
            Action::MarkAdd(mark) => route::mark(&mut self.handle(place)?.route, *mark, true),
            Action::MarkRemove(mark) => route::mark(&mut self.handle(place)?.route, *mark, false),
            Action::NeighbourSet(name, address, mac) => {
                link::neighbour(&mut self.handle(place)?.route, name, *address, Some(*mac))
            }
            Action::NeighbourRemove(name, address) => {
                link::neighbour(&mut self.handle(place)?.route, name, *address, None)
            }
            Action::StationSet(station) => link::station(&mut self.handle(place)?.route, station, true),
            Action::StationRemove(station) => link::station(&mut self.handle(place)?.route, station, false),
            Action::Announce(name, address) => {
                self.handle(place)?.inside(|| announce::announce(name, *address))
            }
            Action::Introduce(name, address, mac) => {
                self.handle(place)?.inside(|| announce::introduce(name, *address, *mac))
            }
            Action::Forget(addresses) => {
                let which = match place {
                    Place::Network(_) => Which::Datagrams,
                    Place::Host | Place::Router(_) => Which::All,
                };
                conntrack::forget(&mut self.handle(place)?.netfilter, addresses, which)?;
                Ok(())
            }
        }
    }

    fn create(&mut self, stage: &[Step]) -> Vec<(Place, Error)> {
        let cloud = self.cloud;
        let made = each(stage.iter().collect(), |step: &Step| {
            let Some(name) = step.place.name(cloud) else { return Ok(None) };
            rules::drop_one(cloud, &name);
            let opened = netns::create(&name).and_then(|()| Handle::open(netns::open(&name)?));
            opened.map(|handle| Some((step.place, handle))).map_err(|error| failure(step, error))
        });
        let mut failures = Vec::new();
        for made in made {
            match made {
                Ok(made) => self.spaces.extend(made.map(|(place, handle)| (place, Mutex::new(handle)))),
                Err(failure) => failures.push(failure),
            }
        }
        failures
    }

    fn remove(&mut self, stage: &[Step]) -> Vec<(Place, Error)> {
        let mut failures = Vec::new();
        for step in stage {
            self.spaces.remove(&step.place);
            let Some(name) = step.place.name(self.cloud) else { continue };
            rules::drop_one(self.cloud, &name);
            failures.extend(netns::remove(&name).err().map(|error| failure(step, error)));
        }
        failures
    }

    fn sysctl(&self, place: Place, key: &str, value: &str) -> Result<()> {
        if let (Place::Host, Some(device)) = (place, uplink::forwarding_of(key, self.cloud)) {
            uplink::remember(self.cloud, device)?;
        }
        self.handle(place)?.inside(|| write_sysctl(key, value))
    }
}

/// Steps of one stage do not wait for those of other places in it.
fn stage(step: &Step) -> u8 {
    match &step.action {
        Action::Create => 0,
        Action::LinkRemove(_) => 1,
        Action::Sysctl(..) if step.place != Place::Host => 1,
        Action::Nft(_) => 1,
        Action::LinkAdd(..) => 2,
        Action::Remove => 4,
        _ => 3,
    }
}

fn failure(step: &Step, cause: Error) -> (Place, Error) {
    (step.place, Error::internal(format!("the step '{step}' failed")).because(cause))
}

/// The switches that come first, and the rest. The host's are apart: theirs are remembered.
fn switches<'a, 'b>(steps: &'b [&'a Step]) -> (&'b [&'a Step], &'b [&'a Step]) {
    let is = |step: &&Step| matches!(step.action, Action::Sysctl(..)) && step.place != Place::Host;
    steps.split_at(steps.iter().take_while(|step| is(step)).count())
}

/// Does work on several threads, in the namespace of this one.
fn each<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    if items.len() <= 1 {
        return items.into_iter().map(work).collect();
    }
    let queue = Mutex::new(items.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| std::iter::from_fn(next).map(&work).collect::<Vec<R>>()))
            .collect();
        let done = threads.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.flatten().collect()
    })
}

/// A switch of what is not loaded is off.
pub fn read_sysctl(key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{key}"));
    let off = || key.starts_with("net/bridge/").then(|| "0".to_string());
    text.ok().map(|text| text.trim().to_string()).or_else(off)
}

/// Sets a switch; one of what is not loaded is off already.
fn write_sysctl(key: &str, value: &str) -> Result<()> {
    match fs::write(format!("/proc/sys/{key}"), value) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && read_sysctl(key).as_deref() == Some(value) => {
            Ok(())
        }
        done => Ok(done?),
    }
}

fn observe_space(
    place: Place,
    cloud: u32,
    handle: &mut Handle,
    keys: &BTreeMap<String, String>,
) -> Result<Space> {
    let mut space = link::observe(&mut handle.route, |name| {
        place != Place::Host || name.starts_with(&format!("sx{cloud:08x}"))
    })?;
    space.tables = handle.tables()?;
    if place == Place::Host {
        space.tables.retain(|name, _| *name == format!("inet shisa_{cloud:08x}"));
        (space.routes, space.marks) = (BTreeSet::new(), BTreeSet::new());
    }
    if !keys.is_empty() {
        let read = |key: &String| Some((key.clone(), read_sysctl(key)?));
        space.sysctls = handle.inside(|| Ok(keys.keys().filter_map(read).collect()))?;
    }
    Ok(space)
}
