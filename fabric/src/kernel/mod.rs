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
pub mod route;
pub mod tap;
pub mod uplink;

use crate::diff::{Action, Step};
use crate::plan::Tracking;
use crate::state::{KernelState, Place, Space, Table};
use base::{Error, Result};
use conntrack::Which;
use netlink::Netlink;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Between announcements of one address.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

pub struct Kernel {
    cloud: u32,
    spaces: BTreeMap<Place, Handle>,
}

/// One namespace: itself, its sockets, and its rules as listed at a generation of theirs.
pub struct Handle {
    namespace: OwnedFd,
    inode: u64,
    route: Netlink,
    netfilter: Netlink,
    rules: Option<(u32, BTreeMap<String, Table>)>,
}

impl Handle {
    fn open(namespace: OwnedFd) -> Result<Handle> {
        let sockets = netns::inside(namespace.as_fd(), || Ok((Netlink::route()?, Netlink::netfilter()?)));
        let (route, netfilter) = sockets?;
        let inode = fs::File::from(namespace.try_clone()?).metadata()?.ino();
        Ok(Handle { namespace, inode, route, netfilter, rules: None })
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
}

impl Kernel {
    /// Enters the kernel from the calling thread's namespace, which is the host's from now on.
    pub fn open(cloud: u32) -> Result<Kernel> {
        let host = Handle::open(netns::current()?)?;
        Ok(Kernel { cloud, spaces: [(Place::Host, host)].into() })
    }

    pub fn namespace(&self, place: Place) -> Result<OwnedFd> {
        Ok(self.handle(place)?.namespace.try_clone()?)
    }

    pub fn handle(&self, place: Place) -> Result<&Handle> {
        self.spaces.get(&place).ok_or_else(|| Error::not_found(format!("there is no namespace for {place}")))
    }

    fn handle_mut(&mut self, place: Place) -> Result<&mut Handle> {
        self.spaces
            .get_mut(&place)
            .ok_or_else(|| Error::not_found(format!("there is no namespace for {place}")))
    }

    /// Whether bridged packets can be tracked, and how. Tried in a namespace that ends with the trial.
    pub fn tracking(&self) -> Result<Tracking> {
        let bridge = "add table bridge t\nadd chain bridge t c\nadd rule bridge t c ct state new accept\n";
        if nft::would_take(bridge) {
            return Ok(Tracking::Bridge);
        }
        if !nft::would_take(
            "add table bridge t\nadd chain bridge t c { type filter hook prerouting priority 0; }\n",
        ) {
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
        let mut places = BTreeSet::from([Place::Host]);
        for name in netns::names() {
            let Some(place) = Place::parse(&name, cloud) else { continue };
            let Ok(namespace) = netns::open(&name) else { continue };
            let inode = fs::File::from(namespace.try_clone()?).metadata()?.ino();
            if self.spaces.get(&place).is_none_or(|handle| handle.inode != inode) {
                // A crash while making it leaves a name without a namespace, which cannot be entered.
                let Ok(handle) = Handle::open(namespace) else {
                    netns::remove(&name)?;
                    continue;
                };
                self.spaces.insert(place, handle);
            }
            places.insert(place);
        }
        self.spaces.retain(|place, _| places.contains(place));
        Ok(())
    }

    /// What is there of this cloud. Switches are read as far as `wanted` names them.
    pub fn observe(&mut self, wanted: &KernelState) -> Result<KernelState> {
        self.follow()?;
        let mut out = KernelState::default();
        let none = BTreeMap::new();
        let cloud = self.cloud;
        for (&place, handle) in &mut self.spaces {
            let keys = wanted.places.get(&place).map_or(&none, |space| &space.sysctls);
            let space = observe_space(place, cloud, handle, keys)?;
            let empty = space.links.is_empty() && space.tables.is_empty();
            if place != Place::Host || !empty {
                out.places.insert(place, space);
            }
        }
        Ok(out)
    }

    /// Takes the steps. One that fails is told and the others are taken.
    pub fn apply(&mut self, steps: &[Step]) -> Vec<(Place, Error)> {
        let mut failures = Vec::new();
        for step in steps {
            if let Err(cause) = self.take(step) {
                failures
                    .push((step.place, Error::internal(format!("the step '{step}' failed")).because(cause)));
            }
        }
        self.announce_again(steps);
        failures
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

    fn take(&mut self, step: &Step) -> Result<()> {
        let place = step.place;
        match &step.action {
            Action::Create => self.create(place),
            Action::Remove => self.remove(place),
            Action::Sysctl(key, value) => self.sysctl(place, key, value),
            Action::Nft(batch) => self.handle(place)?.inside(|| nft::apply(batch)),
            Action::LinkAdd(name, kind, mac) => link::add(self, place, name, kind, *mac),
            Action::LinkSet(name, change) => link::set(&mut self.handle_mut(place)?.route, name, change),
            Action::LinkRemove(name) => link::remove(&mut self.handle_mut(place)?.route, name),
            Action::AddressAdd(name, address) => {
                link::address(&mut self.handle_mut(place)?.route, name, *address, true)
            }
            Action::AddressRemove(name, address) => {
                link::address(&mut self.handle_mut(place)?.route, name, *address, false)
            }
            Action::RouteAdd(route) => route::set(&mut self.handle_mut(place)?.route, route, true),
            Action::RouteRemove(route) => route::set(&mut self.handle_mut(place)?.route, route, false),
            Action::MarkAdd(mark) => route::mark(&mut self.handle_mut(place)?.route, *mark, true),
            Action::MarkRemove(mark) => route::mark(&mut self.handle_mut(place)?.route, *mark, false),
            Action::NeighbourSet(name, address, mac) => {
                link::neighbour(&mut self.handle_mut(place)?.route, name, *address, Some(*mac))
            }
            Action::NeighbourRemove(name, address) => {
                link::neighbour(&mut self.handle_mut(place)?.route, name, *address, None)
            }
            Action::StationSet(station) => link::station(&mut self.handle_mut(place)?.route, station, true),
            Action::StationRemove(station) => {
                link::station(&mut self.handle_mut(place)?.route, station, false)
            }
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
                conntrack::forget(&mut self.handle_mut(place)?.netfilter, addresses, which)?;
                Ok(())
            }
        }
    }

    fn create(&mut self, place: Place) -> Result<()> {
        let Some(name) = place.name(self.cloud) else { return Ok(()) };
        netns::create(&name)?;
        self.spaces.insert(place, Handle::open(netns::open(&name)?)?);
        Ok(())
    }

    fn remove(&mut self, place: Place) -> Result<()> {
        self.spaces.remove(&place);
        place.name(self.cloud).map_or(Ok(()), |name| netns::remove(&name))
    }

    fn sysctl(&self, place: Place, key: &str, value: &str) -> Result<()> {
        if let (Place::Host, Some(device)) = (place, uplink::forwarding_of(key, self.cloud)) {
            uplink::remember(self.cloud, device)?;
        }
        self.handle(place)?.inside(|| Ok(fs::write(format!("/proc/sys/{key}"), value)?))
    }
}

pub fn read_sysctl(key: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{key}")).ok().map(|text| text.trim().to_string())
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
