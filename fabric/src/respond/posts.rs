//! Where answers are given: a bridge in each network's namespace, a leg in each router's.

use crate::kernel::netns;
use crate::plan::Sections;
use crate::state::{BRIDGE, Place, leg};
use base::Result;
use base::node::RouterInterface;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use uuid::Uuid;

/// A device of a namespace, as it is now; one made again under the same name is another post.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Post {
    pub place: Place,
    pub device: String,
    pub(super) index: u32,
    inode: u64,
}

/// A post that is wanted: its network, and the leg of a router that it is, if it is one.
pub(super) struct Stand<'a> {
    pub network: Uuid,
    pub leg: Option<&'a RouterInterface>,
}

/// The devices of the document that are there.
pub(super) fn posts<'a>(cloud: u32, s: &Sections<'a>) -> BTreeMap<Post, Stand<'a>> {
    let mut out = BTreeMap::new();
    for &network in s.networks.keys() {
        let stand = Stand { network, leg: None };
        out.extend(at(cloud, Place::Network(network), vec![(BRIDGE.to_string(), stand)]));
    }
    for router in s.routers.values().filter(|router| router.admin_up) {
        let known = router.interfaces.iter().filter(|interface| s.networks.contains_key(&interface.network));
        let legs = known.map(|interface| {
            (leg(interface.port, false), Stand { network: interface.network, leg: Some(interface) })
        });
        out.extend(at(cloud, Place::Router(router.id), legs.collect()));
    }
    out
}

/// How many posts the document wants, there or not.
pub(super) fn wanted(s: &Sections) -> usize {
    let up = s.routers.values().filter(|router| router.admin_up);
    let legs = up.flat_map(|router| &router.interfaces).filter(|i| s.networks.contains_key(&i.network));
    s.networks.len() + legs.count()
}

fn at<'a>(cloud: u32, place: Place, devices: Vec<(String, Stand<'a>)>) -> Vec<(Post, Stand<'a>)> {
    let names: Vec<&str> = devices.iter().map(|(name, _)| name.as_str()).collect();
    let look = || {
        let namespace = open(cloud, place)?;
        let inode = File::from(namespace.try_clone()?).metadata()?.ino();
        let index = |name: &&str| nix::net::if_::if_nametoindex(*name).ok();
        Ok((inode, netns::inside(namespace, || Ok(names.iter().map(index).collect::<Vec<_>>()))?))
    };
    // A namespace or device that is not there yet is looked for again.
    let Ok((inode, indexes)): Result<_> = look() else { return Vec::new() };
    let found = devices.into_iter().zip(indexes);
    found
        .filter_map(|((device, stand), index)| Some((Post { place, device, index: index?, inode }, stand)))
        .collect()
}

pub(super) fn open(cloud: u32, place: Place) -> Result<OwnedFd> {
    place.name(cloud).map_or_else(netns::current, |name| netns::open(&name))
}
