//! The metadata sockets: on each network's bridge 169.254.169.254 and fe80::a9fe:a9fe, on each leg of a router
//! 169.254.169.254. Who serves them asks for what came and went after each sync.

use super::posts::{Post, open, posts};
use super::socket;
use crate::kernel::netns;
use crate::plan::Sections;
use crate::state::Place;
use base::{Error, Result};
use std::collections::BTreeSet;
use std::net::TcpListener;
use uuid::Uuid;

const PORT: u16 = 80;

/// Metadata sockets that came and went since they were last asked for.
#[derive(Default)]
pub struct Listeners {
    pub opened: Vec<Listener>,
    /// Close these: an open socket keeps a removed namespace alive.
    pub closed: Vec<Post>,
}

/// Sockets on the metadata addresses that guests of one network reach.
pub struct Listener {
    pub post: Post,
    pub network: Uuid,
    pub sockets: Vec<TcpListener>,
}

#[derive(Default)]
pub struct Metadata {
    manned: BTreeSet<Post>,
    listeners: Listeners,
}

impl Metadata {
    pub fn listeners(&mut self) -> Listeners {
        std::mem::take(&mut self.listeners)
    }

    /// Follows the document and the devices as they are. What fails is tried again next time.
    pub fn follow(&mut self, cloud: u32, s: &Sections) -> Vec<(Place, Error)> {
        let posts = posts(cloud, s);
        let gone: Vec<Post> = self.manned.iter().filter(|post| !posts.contains_key(post)).cloned().collect();
        for post in gone {
            self.manned.remove(&post);
            self.listeners.opened.retain(|listener| listener.post != post);
            self.listeners.closed.push(post);
        }
        let mut failures = Vec::new();
        for (post, stand) in posts {
            if self.manned.contains(&post) {
                continue;
            }
            match sockets(cloud, &post) {
                Ok(sockets) => {
                    self.listeners.opened.push(Listener {
                        post: post.clone(),
                        network: stand.network,
                        sockets,
                    });
                    self.manned.insert(post);
                }
                Err(error) => failures.push((post.place, error)),
            }
        }
        failures
    }
}

fn sockets(cloud: u32, post: &Post) -> Result<Vec<TcpListener>> {
    let families: &[bool] = if matches!(post.place, Place::Network(_)) { &[false, true] } else { &[false] };
    netns::inside(open(cloud, post.place)?, || {
        families.iter().map(|v6| Ok(socket::tcp(&post.device, post.index, *v6, PORT)?)).collect()
    })
}
