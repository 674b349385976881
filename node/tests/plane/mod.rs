//! A plane in memory: one document for one node, and what the node said of itself.

#![allow(dead_code, clippy::unwrap_used)]

use base::node::{Document, Generation, Hello, Patch, Report, Section, SectionKey, VmReport, VmState};
use base::{Error, Result};
use node::{ImageBytes, Link, Patches};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

pub struct Plane {
    pub document: watch::Sender<Document>,
    pub told: watch::Sender<Told>,
    pub images: Mutex<BTreeMap<Uuid, std::path::PathBuf>>,
    /// The plane is away: every question fails.
    pub away: watch::Sender<bool>,
}

#[derive(Default, Clone)]
pub struct Told {
    pub hello: Option<Hello>,
    pub generation: Generation,
    pub vms: BTreeMap<Uuid, VmReport>,
    pub ports: BTreeMap<Uuid, bool>,
    pub reports: usize,
}

impl Plane {
    pub fn new() -> Arc<Plane> {
        Arc::new(Plane {
            document: watch::channel(Document::default()).0,
            told: watch::channel(Told::default()).0,
            images: Mutex::default(),
            away: watch::channel(false).0,
        })
    }

    /// Changes the document under the next revision.
    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<SectionKey, Section>)) {
        self.document.send_modify(|document| {
            document.generation.revision += 1;
            change(&mut document.sections);
        });
    }

    pub fn link(self: &Arc<Plane>) -> Link {
        let [a, b, c, d] = [(); 4].map(|()| self.clone());
        Link::new(
            move |hello| {
                let plane = a.clone();
                async move { plane.at_home().map(|()| plane.told.send_modify(|told| told.hello = Some(hello))) }
            },
            move |after, wait| {
                let plane = b.clone();
                async move { plane.poll(after.generation, wait).await.map(one) }
            },
            move |report| {
                let plane = c.clone();
                async move { plane.at_home().map(|()| plane.told.send_modify(|told| told.take(report))) }
            },
            move |image| {
                let plane = d.clone();
                async move { plane.image(image).await }
            },
        )
    }

    fn at_home(&self) -> Result<()> {
        if *self.away.borrow() { Err(Error::unavailable("the plane is away")) } else { Ok(()) }
    }

    async fn poll(&self, after: Generation, wait: Duration) -> Result<Patch> {
        self.at_home()?;
        let mut document = self.document.subscribe();
        let mut away = self.away.subscribe();
        tokio::select! {
            _ = document.wait_for(|document| document.generation > after) => {}
            _ = away.wait_for(|away| *away) => return Err(Error::unavailable("the plane went away")),
            () = tokio::time::sleep(wait) => {}
        }
        let document = document.borrow().clone();
        Ok(Patch {
            generation: document.generation,
            whole: true,
            changed: document.sections,
            ..Patch::default()
        })
    }

    async fn image(&self, id: Uuid) -> Result<ImageBytes> {
        let path = self.images.lock().unwrap().get(&id).cloned();
        let path = path.ok_or_else(|| Error::not_found("no such image"))?;
        Ok(Box::pin(tokio::fs::File::open(path).await?))
    }

    /// Waits until what the node told fulfils `condition`.
    pub async fn until(&self, seconds: u64, condition: impl FnMut(&Told) -> bool) -> Told {
        let mut told = self.told.subscribe();
        let found = tokio::time::timeout(Duration::from_secs(seconds), told.wait_for(condition)).await;
        match found {
            Ok(told) => told.unwrap().clone(),
            Err(_) => panic!("not within {seconds} s; the node told {:?}", self.told.borrow().vms),
        }
    }

    pub async fn until_state(&self, seconds: u64, vm: Uuid, state: VmState) -> VmReport {
        let told = self.until(seconds, |told| told.vms.get(&vm).is_some_and(|vm| vm.state == state)).await;
        told.vms[&vm].clone()
    }
}

impl Told {
    fn take(&mut self, report: Report) {
        if report.whole {
            self.vms.clear();
            self.ports.clear();
        }
        self.generation = report.generation;
        self.vms.extend(report.vms);
        self.ports.extend(report.ports.into_iter().map(|(id, port)| (id, port.up)));
        self.vms.retain(|id, _| !report.gone.contains(id));
        self.ports.retain(|id, _| !report.gone.contains(id));
        self.reports += 1;
    }
}

/// An answer with one patch, as planes of older builds give it.
fn one(patch: Patch) -> Patches {
    Box::pin(futures_util::stream::iter([Ok(patch)]))
}

/// A guest of the smallest size.
pub fn vm(n: u128) -> base::node::Vm {
    base::node::Vm {
        id: Uuid::from_u128(n),
        power: base::node::Power::On,
        reboots: 0,
        reboot_hard: false,
        vcpus: 1,
        memory_mib: 128,
        root_gib: 1,
        ephemeral_gib: 0,
        swap_mib: 0,
        image: None,
        ports: Vec::new(),
        config_drive: false,
        metadata: base::node::GuestMetadata { hostname: format!("vm-{n}"), ..Default::default() },
        maintenance: None,
    }
}
