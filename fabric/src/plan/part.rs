//! The part of a plan that a change has to do with, so that it costs what it touches, not what exists.
//!
//! Of each member of a network a plan makes entries by its addresses, its MAC and its node, and of each member of a group
//! one. So what a change of members, groups and ports comes to is the difference of two plans, before and after it, that
//! have of each set only what changed and what shares one of these with it, and besides one member on another node, so
//! that there is a tunnel where there is one. `tests`: the steps are those of the whole plans.
//!
//! Left to the whole plan: changes of networks and routers; sets, tunnels, tables and places that come or go; other
//! networks to be led to (`direct`). A table that is written anew has all of its elements.
//!
//! Each member of the networks that are touched is looked at, and nothing is made of it.

use super::{Powers, Sections, direct, networks_of, plan_of};
use crate::Settings;
use crate::state::{DIRECT, KernelState, Place, Space, TUNNEL};
use base::node::{Group, Member, Members, Port, SectionKey};
use base::units::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

/// What was known of some places, and what they are to be, both without what the change does not concern.
pub struct Part {
    pub seen: KernelState,
    pub wanted: KernelState,
}

/// The part of a change. `whole`: the plan before it.
pub fn of(
    (before, after): (&Sections, &Sections),
    changed: &BTreeSet<SectionKey>,
    (settings, powers): (&Settings, Powers),
    places: &BTreeSet<Place>,
    whole: &KernelState,
) -> Option<Part> {
    let mut concerned = Concerned { near: near(after, places), ..Concerned::default() };
    concerned.take(before, after, changed)?;
    let led = |s: &Sections| -> Vec<_> { concerned.near.iter().map(|id| direct::led(s, *id)).collect() };
    if led(before) != led(after) {
        return None;
    }
    while concerned.spread(before, after) {}
    concerned.stand_ins(before, after, settings);
    // They are to be what they are among all.
    while concerned.spread(before, after) {}
    let (was, is) = (concerned.sets(before, after), concerned.sets(after, before));
    let mut part = Part {
        seen: plan_of(&was.put_into(before), settings, powers, places),
        wanted: plan_of(&is.put_into(after), settings, powers, places),
    };
    part.complete(whole, places).then_some(part)
}

/// The networks that are of interest to places. Routers are as before.
fn near(s: &Sections, places: &BTreeSet<Place>) -> BTreeSet<Uuid> {
    let mut out = BTreeSet::new();
    for place in places {
        match place {
            Place::Host => {}
            Place::Network(id) => {
                out.insert(*id);
                out.extend(s.routers_of(*id).flat_map(networks_of));
            }
            Place::Router(id) => {
                out.extend(s.routers.get(id).map(|router| networks_of(router)).unwrap_or_default())
            }
        }
    }
    out
}

impl Part {
    /// Gives tables that are written anew all of their elements. False: the part does not say it all.
    fn complete(&mut self, whole: &KernelState, places: &BTreeSet<Place>) -> bool {
        places.iter().all(|place| {
            let (all, seen) = (whole.places.get(place), self.seen.places.get_mut(place));
            match (all, seen, self.wanted.places.get_mut(place)) {
                (None, None, None) => true,
                (Some(all), Some(seen), Some(wanted)) => complete(all, seen, wanted),
                _ => false,
            }
        })
    }
}

fn complete(all: &Space, seen: &mut Space, wanted: &mut Space) -> bool {
    let same =
        |device: &str| seen.links.get(device).map(|l| &l.kind) == wanted.links.get(device).map(|l| &l.kind);
    if !(all.has_frame_of(seen) && same(TUNNEL) && same(DIRECT)) {
        return false;
    }
    wanted.tables.iter_mut().all(|(name, table)| {
        let (Some(all), Some(was)) = (all.tables.get(name), seen.tables.get_mut(name)) else { return false };
        // What a set had is of interest also when it goes.
        if !table.sets.keys().eq(all.sets.keys()) {
            return false;
        }
        if !was.is_updated_to(table) {
            let mut anew = all.clone();
            anew.follow(was, table);
            (*was, *table) = (all.clone(), anew);
        }
        true
    })
}

/// What a change has to do with.
#[derive(Default)]
struct Concerned {
    addresses: BTreeSet<IpAddr>,
    macs: BTreeSet<Mac>,
    /// Of members that changed.
    nodes: BTreeSet<IpAddr>,
    /// Networks in which others may share something with what changed.
    near: BTreeSet<Uuid>,
    /// By network.
    members: BTreeMap<Uuid, BTreeSet<Uuid>>,
}

impl Concerned {
    /// None: more may change than entries of members.
    fn take(&mut self, before: &Sections, after: &Sections, changed: &BTreeSet<SectionKey>) -> Option<()> {
        for key in changed {
            match key {
                SectionKey::Network(_) | SectionKey::Router(_) => return None,
                SectionKey::Members(id) => self.change(before.members.get(id)?, after.members.get(id)?),
                SectionKey::Port(id) => {
                    let both = [before, after].into_iter().filter_map(|s| s.ports.get(id));
                    both.for_each(|port| self.port(port));
                }
                SectionKey::Group(_) | SectionKey::Rules(_) | SectionKey::Vm(_) | SectionKey::Image(_) => {}
            }
        }
        Some(())
    }

    fn change(&mut self, before: &Members, after: &Members) {
        for id in before.differences(after) {
            self.members.entry(after.network).or_default().insert(id);
            for member in [before, after].into_iter().filter_map(|members| members.ports.get(&id)) {
                self.member(member);
                self.nodes.extend(member.vtep);
            }
        }
    }

    fn port(&mut self, port: &Port) {
        self.addresses.extend(port.fixed.iter().map(|fixed| fixed.address));
        self.macs.insert(port.mac);
    }

    fn member(&mut self, member: &Member) {
        self.addresses.extend(&member.addresses);
        self.macs.insert(member.mac);
    }

    fn concerns(&self, member: &Member) -> bool {
        self.macs.contains(&member.mac) || member.addresses.iter().any(|a| self.addresses.contains(a))
    }

    /// Takes in who shares an address or a MAC with what is in. Returns whether there was anybody.
    fn spread(&mut self, before: &Sections, after: &Sections) -> bool {
        let mut found = Vec::new();
        for network in &self.near {
            let known = self.members.get(network);
            let sets = [before, after].into_iter().filter_map(|s| s.members.get(network));
            for (id, member) in sets.flat_map(|members| &members.ports) {
                if self.concerns(member) && !known.is_some_and(|known| known.contains(id)) {
                    found.push((*network, *id, member));
                }
            }
        }
        for (network, id, member) in &found {
            self.members.entry(*network).or_default().insert(*id);
            self.member(member);
        }
        !found.is_empty()
    }

    /// One member that does not change for all on another node, and one for those on each node that is concerned.
    fn stand_ins(&mut self, before: &Sections, after: &Sections, settings: &Settings) {
        for (network, members) in &before.members {
            let Some(later) = after.members.get(network) else { continue };
            let mine = self.members.entry(*network).or_default();
            let stays = |id: &Uuid| !mine.contains(id) && later.ports.contains_key(id);
            let changed = members.differences(later).next().is_some();
            let mut wanted = if changed { self.nodes.clone() } else { BTreeSet::new() };
            let mut found = Vec::new();
            for (id, member) in members.ports.iter().filter(|(id, _)| stays(id)) {
                let Some(vtep) = member.vtep.filter(|vtep| *vtep != settings.node_address) else { continue };
                if wanted.remove(&vtep) || found.is_empty() {
                    found.push((*id, member));
                }
                if wanted.is_empty() {
                    break;
                }
            }
            mine.extend(found.iter().map(|(id, _)| *id));
            found.iter().for_each(|(_, member)| self.member(member));
        }
    }

    /// What `s` has of it. Sets that the other version does not have are not cut.
    fn sets(&self, s: &Sections, other: &Sections) -> Sets {
        let mut out = Sets::default();
        for (network, members) in s.members.iter().filter(|(id, _)| other.members.contains_key(id)) {
            let ids = self.members.get(network).into_iter().flatten();
            let ports = ids.filter_map(|id| Some((*id, members.ports.get(id)?.clone()))).collect();
            out.members.push(Members { network: *network, ports });
        }
        for (id, group) in &s.groups {
            let Some(theirs) = other.groups.get(id) else { continue };
            let members = group.differences(theirs).filter(|a| group.members.contains(a)).collect();
            out.groups.push(Group { id: *id, members });
        }
        out
    }
}

/// Sets as they are cut.
#[derive(Default)]
struct Sets {
    members: Vec<Members>,
    groups: Vec<Group>,
}

impl Sets {
    fn put_into<'a>(&'a self, s: &Sections<'a>) -> Sections<'a> {
        let mut out = s.clone();
        out.members.extend(self.members.iter().map(|members| (members.network, members)));
        out.groups.extend(self.groups.iter().map(|group| (group.id, group)));
        out
    }
}
