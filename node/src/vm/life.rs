//! Keeps one guest as the document has it: sees what there is, takes the steps of `plan::diff`, tells the result.
//!
//! Each guest has a task of its own, so that none waits for another's image, boot or end. What must outlive us is in
//! `run.json`, written after each start; everything else is seen anew. QEMU may write only into `qemu/`; what we
//! believe stands beside it.
//!
//! ```text
//! vms/ID/run.json   pid and start time, boot of the machine, reboot count
//! vms/ID/password   what the guest posted
//! vms/ID/qemu.log   what QEMU said of itself
//! vms/ID/qemu/      disks, console, sockets
//! ```
//!
//! Limits: `STOP_SECS_MAX`, `SOFT_REBOOT_SECS_MAX`, `CONSOLE_BYTES_MAX` of console kept (twice that on disk, more only
//! while a guest writes that much within `LOOK_EVERY`).

use super::machine::{self, CONSOLE, MONITOR};
use super::plan::{self, Guest, Machine, Patience, Seen, Step};
use super::process::{self, Process};
use super::qmp::Qmp;
use super::{cgroup, disk};
use crate::file;
use crate::host::Host;
use base::pass::{Next, Pass};
use base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

pub const STOP_SECS_MAX: u64 = 60;
pub const SOFT_REBOOT_SECS_MAX: u64 = 12;
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The button is pressed again: a guest that is booting does not hear it.
const PRESS_EVERY: Duration = Duration::from_secs(4);
const QUIT_MAX: Duration = Duration::from_secs(5);
const MONITOR_MAX: Duration = Duration::from_secs(20);
const UNPLUG_MAX: Duration = Duration::from_secs(10);
const CONSOLE_BYTES_MAX: u64 = 1 << 20;
/// The older half of the console.
const CONSOLE_OLD: &str = "console.old";

/// What must be known of a running guest after our own restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub process: Process,
    /// The machine's boot in which it runs.
    pub boot: String,
    pub reboots: u64,
    /// We pressed its power button.
    pub asked: bool,
    /// Its guest powered off by itself, and QEMU was ended.
    pub ended: bool,
}

/// Where a guest's files are.
#[derive(Clone)]
pub struct Files {
    pub all: PathBuf,
}

impl Files {
    pub fn qemu(&self) -> PathBuf {
        self.all.join("qemu")
    }

    pub fn run(&self) -> PathBuf {
        self.all.join("run.json")
    }

    pub fn password(&self) -> PathBuf {
        self.all.join("password")
    }

    fn log(&self) -> PathBuf {
        self.all.join("qemu.log")
    }

    /// The console's last `CONSOLE_BYTES_MAX` bytes at least, where it has as many.
    pub fn console(&self) -> Result<String> {
        let mut bytes = Vec::new();
        for name in [CONSOLE_OLD, CONSOLE] {
            if let Ok(file) = file::open_no_link(&self.qemu().join(name)) {
                file.take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes)?;
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What is there, without asking QEMU.
    pub fn glance(&self) -> Result<Seen> {
        let machine = match file::read_json::<Run>(&self.run())? {
            None => Machine::Absent,
            Some(run) if run.ended => Machine::Ended { reboots: run.reboots, fault: None },
            Some(run) if run.boot != process::boot_id()? => Machine::Absent,
            Some(run) if run.process.alive() => {
                Machine::Running { reboots: run.reboots, nics: BTreeSet::new(), paused: false }
            }
            Some(run) => Machine::Ended { reboots: run.reboots, fault: Some(self.last_words()) },
        };
        Ok(Seen { files: self.all.try_exists()?, root: disk::root(&self.qemu())?, machine })
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        match log.lines().rfind(|line| !line.is_empty() && !line.contains("warning:")) {
            Some(line) => format!("QEMU ended: {line}"),
            None => "QEMU ended without a word; it was killed, or the machine ran out of memory".into(),
        }
    }
}

pub struct Life {
    id: Uuid,
    host: Arc<Host>,
    files: Files,
    wanted: watch::Receiver<Option<Arc<Guest>>>,
    /// Wakes this guest's own pass.
    wake: Arc<Notify>,
    qmp: Option<Arc<Qmp>>,
    listener: Option<tokio::task::JoinHandle<()>>,
    /// The process, where it is our child: it must be waited for.
    child: Option<Child>,
    /// Since when the guest has been asked to power off.
    asked: Option<Instant>,
    /// A step that failed for good, and for which wish: it is not tried again for the same.
    failed: Option<(Arc<Guest>, String)>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.disconnect();
    }
}

impl Pass for Life {
    const NAME: &'static str = "guest_as_wanted";
    const EVERY: Duration = LOOK_EVERY;

    async fn pass(&mut self) -> Result<Next> {
        let wanted = self.wanted.borrow_and_update().clone();
        let seen = self.seen().await?;
        self.tell(wanted.as_deref(), &seen)?;
        if self.failed.as_ref().is_some_and(|(guest, _)| Some(guest) == wanted.as_ref()) {
            return Ok(Next::Usual);
        }
        self.failed = None;
        let steps = plan::diff(wanted.as_deref(), &seen);
        if steps.is_empty() {
            self.trim_console()?;
            return Ok(Next::Usual);
        }
        for step in steps {
            tracing::info!(vm = %self.id, ?step, "step");
            match self.step(step, wanted.as_ref()).await {
                Ok(true) => {}
                // The wish has changed meanwhile.
                Ok(false) => break,
                Err(error) => {
                    self.fail(wanted, error)?;
                    break;
                }
            }
        }
        Ok(Next::Again)
    }
}

impl Life {
    pub fn new(
        id: Uuid,
        host: Arc<Host>,
        wanted: watch::Receiver<Option<Arc<Guest>>>,
        wake: Arc<Notify>,
    ) -> Life {
        let files = host.files(id);
        Life {
            id,
            host,
            files,
            wanted,
            wake,
            qmp: None,
            listener: None,
            child: None,
            asked: None,
            failed: None,
        }
    }

    fn tell(&self, wanted: Option<&Guest>, seen: &Seen) -> Result<()> {
        let there = wanted.is_some() || seen.files || seen.machine != Machine::Absent;
        let fault = self.failed.as_ref().map(|(_, fault)| fault.as_str());
        let password = file::read(&self.files.password())?.map(|p| String::from_utf8_lossy(&p).into_owned());
        let report = there.then(|| plan::report(wanted, seen, fault, password));
        self.host.observed.vm(self.id, report);
        Ok(())
    }

    /// What may pass by itself is tried again by the loop; the rest waits for another wish.
    fn fail(&mut self, wanted: Option<Arc<Guest>>, error: Error) -> Result<()> {
        match wanted {
            Some(guest) if error.kind() != Kind::Unavailable => {
                tracing::warn!(vm = %self.id, "{}", error.chain());
                self.failed = Some((guest, error.message().to_string()));
                Ok(())
            }
            _ => Err(error),
        }
    }

    // What there is.

    async fn seen(&mut self) -> Result<Seen> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_some()
        {
            self.child = None;
        }
        let mut seen = self.files.glance()?;
        if let Machine::Running { reboots, .. } = seen.machine {
            match self.ask(reboots).await {
                Ok(machine) => seen.machine = machine,
                // It ended while it was asked, or does not answer.
                Err(error) => {
                    let again = self.files.glance()?;
                    if matches!(again.machine, Machine::Running { .. }) {
                        return Err(error);
                    }
                    seen = again;
                }
            }
        } else {
            self.disconnect();
        }
        Ok(seen)
    }

    async fn ask(&mut self, reboots: u64) -> Result<Machine> {
        let qmp = self.connected().await?;
        let status = qmp.run("query-status", json!({})).await?;
        let paused = match status["status"].as_str().unwrap_or_default() {
            "shutdown" | "guest-panicked" => {
                let asked = self.run()?.is_some_and(|run| run.asked);
                return Ok(Machine::Halted { reboots, asked });
            }
            status => status != "running",
        };
        let devices = qmp.run("qom-list", json!({ "path": "/machine/peripheral" })).await?;
        let names = devices.as_array().into_iter().flatten().filter_map(|device| device["name"].as_str());
        Ok(Machine::Running { reboots, nics: names.filter_map(machine::port_of).collect(), paused })
    }

    async fn connected(&mut self) -> Result<Arc<Qmp>> {
        if let Some(qmp) = self.qmp.as_ref().filter(|qmp| qmp.open()) {
            return Ok(qmp.clone());
        }
        self.disconnect();
        let qmp = Arc::new(Qmp::connect(&self.files.qemu(), MONITOR).await?);
        let (mut events, wake) = (qmp.events(), self.wake.clone());
        self.listener = Some(tokio::spawn(async move {
            // Lost events wake as well; the end of the connection does so once.
            while !matches!(events.recv().await, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                wake.notify_one();
            }
        }));
        self.qmp = Some(qmp.clone());
        Ok(qmp)
    }

    fn disconnect(&mut self) {
        self.qmp = None;
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }

    fn run(&self) -> Result<Option<Run>> {
        file::read_json(&self.files.run())
    }

    // What is done. False: the wish has changed meanwhile, and the step is not done.

    async fn step(&mut self, step: Step, wanted: Option<&Arc<Guest>>) -> Result<bool> {
        match (step, wanted) {
            (Step::PowerOff(patience), _) => return self.power_off(patience, wanted).await,
            (Step::End, _) => self.end().await?,
            (Step::EndHalted, _) => self.end_halted().await?,
            (Step::Forget, _) => file::remove(&self.files.run())?,
            (Step::RemoveRoot, _) => file::remove(&self.files.qemu().join(disk::ROOT))?,
            (Step::MakeDisks, Some(guest)) => return self.make_disks(guest).await,
            (Step::Start, Some(guest)) => self.start(guest).await?,
            (Step::AttachNic(port), Some(guest)) => self.attach(guest, port).await?,
            (Step::DetachNic(port), _) => self.detach(port).await?,
            (Step::RemoveFiles, _) => self.remove_files().await?,
            (Step::MakeDisks | Step::Start | Step::AttachNic(_), None) => {}
        }
        Ok(true)
    }

    /// Waits until the wish is another than `than`.
    async fn changed(wanted: &mut watch::Receiver<Option<Arc<Guest>>>, than: Option<&Arc<Guest>>) {
        if wanted.wait_for(|now| now.as_ref() != than).await.is_err() {
            // The node ends; this task will, too.
            std::future::pending().await
        }
    }

    async fn power_off(&mut self, patience: Patience, than: Option<&Arc<Guest>>) -> Result<bool> {
        let limit = match patience {
            Patience::Stop => STOP_SECS_MAX,
            Patience::Reboot => SOFT_REBOOT_SECS_MAX,
        };
        let end = *self.asked.get_or_insert_with(Instant::now) + Duration::from_secs(limit);
        if let Some(run) = self.run()?.filter(|run| !run.asked) {
            file::write_json(&self.files.run(), &Run { asked: true, ..run })?;
        }
        let mut wanted = self.wanted.clone();
        while Instant::now() < end {
            let qmp = self.connected().await?;
            let mut events = qmp.events();
            qmp.run("system_powerdown", json!({})).await?;
            let pressed = (Instant::now() + PRESS_EVERY).min(end);
            loop {
                let seen = self.seen().await?.machine;
                if !matches!(seen, Machine::Running { .. }) {
                    self.end().await?;
                    return Ok(true);
                }
                tokio::select! {
                    _ = events.recv() => {}
                    () = tokio::time::sleep_until(pressed) => break,
                    () = Life::changed(&mut wanted, than) => return Ok(false),
                }
            }
        }
        self.end().await?;
        Ok(true)
    }

    /// Ends QEMU, asking it first, and forgets that it ran.
    async fn end(&mut self) -> Result<()> {
        self.quit().await?;
        file::remove(&self.files.run())
    }

    async fn end_halted(&mut self) -> Result<()> {
        self.quit().await?;
        let Some(run) = self.run()? else { return Ok(()) };
        file::write_json(&self.files.run(), &Run { ended: true, ..run })
    }

    async fn quit(&mut self) -> Result<()> {
        let Some(run) = self.run()? else { return Ok(()) };
        if let Ok(qmp) = self.connected().await {
            // It may be gone before it answers.
            let _ = qmp.run("quit", json!({})).await;
        }
        if !run.process.gone(QUIT_MAX).await {
            run.process.kill()?;
        }
        if !run.process.gone(QUIT_MAX).await {
            return Err(Error::unavailable("QEMU does not end, even when it is killed"));
        }
        if let Some(mut child) = self.child.take() {
            child.wait().await?;
        }
        self.disconnect();
        self.asked = None;
        cgroup::leave(self.host.cloud, self.id).await;
        Ok(())
    }

    async fn make_disks(&mut self, guest: &Arc<Guest>) -> Result<bool> {
        self.make_directory()?;
        let mut wanted = self.wanted.clone();
        let fetch = async {
            match (&guest.image, guest.vm.image) {
                (Some(image), _) => self.host.images.fetched(image).await.map(Some),
                (None, None) => Ok(None),
                (None, Some(_)) => Err(Error::unavailable("the document does not have the guest's image")),
            }
        };
        let name = tokio::select! {
            name = fetch => name?,
            () = Life::changed(&mut wanted, Some(guest)) => return Ok(false),
        };
        let path = name.map(|name| format!("../../../images/{name}"));
        let base = guest.image.as_ref().zip(path.as_deref());
        disk::make(&self.files.qemu(), &guest.vm, base, self.host.owner(self.id)).await?;
        Ok(true)
    }

    fn make_directory(&self) -> Result<()> {
        let qemu = self.files.qemu();
        fs::create_dir_all(&qemu)?;
        fs::set_permissions(&self.files.all, Permissions::from_mode(0o711))?;
        fs::set_permissions(&qemu, Permissions::from_mode(0o700))?;
        if let Some(owner) = self.host.owner(self.id) {
            chown(&qemu, Some(owner), Some(owner))?;
        }
        Ok(())
    }

    async fn start(&mut self, guest: &Arc<Guest>) -> Result<()> {
        let qemu = self.files.qemu();
        for socket in [MONITOR, "serial", "vnc"] {
            file::remove(&qemu.join(socket))?;
        }
        self.write_config_drive(guest)?;
        let mut taps = Vec::new();
        for nic in &guest.nics {
            taps.push((nic, self.host.open_tap(nic.port.id).await?));
        }
        let acceleration = self.host.acceleration;
        let start = machine::Start { guest, acceleration, disks: machine::disks(&qemu), taps };
        let log = fs::File::create(self.files.log())?;
        let (child, process) = machine::spawn(&start, &qemu, self.host.user_and_group(self.id), log)?;
        self.child = Some(child);
        let (boot, reboots) = (process::boot_id()?, guest.vm.reboots);
        file::write_json(&self.files.run(), &Run { process, boot, reboots, asked: false, ended: false })?;
        cgroup::join(self.host.cloud, self.id, process.pid, guest.vm.vcpus);
        self.asked = None;
        self.await_monitor(process).await
    }

    async fn await_monitor(&mut self, process: Process) -> Result<()> {
        let end = Instant::now() + MONITOR_MAX;
        loop {
            match self.connected().await {
                Ok(_) => return Ok(()),
                Err(_) if !process.alive() => {
                    let words = self.files.last_words();
                    file::remove(&self.files.run())?;
                    return Err(Error::internal(words));
                }
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn write_config_drive(&self, guest: &Guest) -> Result<()> {
        let path = self.files.qemu().join(disk::CONFIG);
        file::remove(&path)?;
        if guest.vm.config_drive {
            file::write(&path, &crate::metadata::config_drive(guest)?)?;
            if let Some(owner) = self.host.owner(self.id) {
                chown(&path, Some(owner), Some(owner))?;
            }
        }
        Ok(())
    }

    async fn attach(&mut self, guest: &Guest, port: Uuid) -> Result<()> {
        let Some(nic) = guest.nics.iter().find(|nic| nic.port.id == port) else { return Ok(()) };
        let tap = self.host.open_tap(port).await?;
        let qmp = self.connected().await?;
        let network = machine::network(port);
        // What an attempt before this one left behind.
        let _ = qmp.run("netdev_del", json!({ "id": network })).await;
        qmp.give(&network, std::os::fd::AsFd::as_fd(&tap)).await?;
        let netdev = json!({ "type": "tap", "id": network, "fd": network, "vhost": false });
        qmp.run("netdev_add", netdev).await?;
        qmp.run("device_add", machine::nic(nic)).await.map(|_| ())
    }

    /// The guest lets its card go, or is asked again with the next pass.
    async fn detach(&mut self, port: Uuid) -> Result<()> {
        let qmp = self.connected().await?;
        let device = machine::device(port);
        let mut events = qmp.events();
        // A refusal means: already asked.
        let _ = qmp.run("device_del", json!({ "id": device })).await;
        let deleted = async {
            while let Ok(event) = events.recv().await {
                if event.name == "DEVICE_DELETED" && event.data["device"] == device.as_str() {
                    return;
                }
            }
        };
        tokio::time::timeout(UNPLUG_MAX, deleted)
            .await
            .map_err(|e| Error::unavailable("the guest does not let its card go").because(e))?;
        qmp.run("netdev_del", json!({ "id": machine::network(port) })).await.map(|_| ())
    }

    async fn remove_files(&self) -> Result<()> {
        cgroup::leave(self.host.cloud, self.id).await;
        file::remove_directory(&self.files.all)
    }

    /// Moves the console's older half away; QEMU appends, so that it goes on at the new end.
    fn trim_console(&self) -> Result<()> {
        let path = self.files.qemu().join(CONSOLE);
        let Ok(mut file) = file::open_no_link(&path) else { return Ok(()) };
        let length = file.metadata()?.len();
        if length <= CONSOLE_BYTES_MAX / 2 {
            return Ok(());
        }
        file.seek(SeekFrom::Start(length - CONSOLE_BYTES_MAX / 2))?;
        let mut tail = Vec::new();
        file.take(CONSOLE_BYTES_MAX / 2).read_to_end(&mut tail)?;
        file::write(&self.files.qemu().join(CONSOLE_OLD), &tail)?;
        Ok(file::truncate_no_link(&path)?)
    }
}
