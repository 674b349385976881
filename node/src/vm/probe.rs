//! Whether this machine's KVM can be used: only a guest that has run under it can tell.
//!
//! `/dev/kvm` proves nothing: nested KVM may be there and stand still, or be slower than emulation. So a boot sector
//! is started under TCG and under KVM; KVM is taken when its guest comes to its end in time and no later than twice
//! as late as the other. The answer is kept for this kernel and this QEMU.

use crate::file;
use base::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(3);
/// What a boot takes at most under a KVM that works, on a busy machine.
const KVM_MIN: Duration = Duration::from_millis(500);

/// `cli; mov dx, 0xf4; mov al, 0x10; out dx, al; hlt; jmp $-1`: QEMU ends with `EXIT`.
const CODE: [u8; 10] = [0xfa, 0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd];
const EXIT: i32 = 0x10 << 1 | 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    Kvm,
    Tcg,
}

impl Acceleration {
    pub fn name(self) -> &'static str {
        match self {
            Acceleration::Kvm => "kvm",
            Acceleration::Tcg => "tcg",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Answer {
    kernel: String,
    qemu: u64,
    acceleration: Acceleration,
}

/// The answer that is kept in `state`, or a new one.
pub async fn acceleration(state: &Path, qemu: u64) -> Result<Acceleration> {
    let kernel = std::fs::read_to_string("/proc/version")?;
    let path = state.join("acceleration.json");
    if let Some(kept) = file::read_json::<Answer>(&path)?
        && (&kept.kernel, kept.qemu) == (&kernel, qemu)
    {
        return Ok(kept.acceleration);
    }
    let acceleration = probe(state).await?;
    file::write_json(&path, &Answer { kernel, qemu, acceleration })?;
    Ok(acceleration)
}

async fn probe(state: &Path) -> Result<Acceleration> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Acceleration::Tcg);
    }
    let sector = state.join("probe.img");
    let mut bytes = [0; 512];
    bytes[..CODE.len()].copy_from_slice(&CODE);
    bytes[510..].copy_from_slice(&[0x55, 0xaa]);
    file::write(&sector, &bytes)?;
    let tcg = boot(state, Acceleration::Tcg, LIMIT).await;
    let limit = tcg.map_or(LIMIT, |tcg| (tcg * 2).clamp(KVM_MIN, LIMIT));
    let kvm = boot(state, Acceleration::Kvm, limit).await;
    file::remove(&sector)?;
    tracing::info!(?tcg, ?kvm, "the test guests' times");
    Ok(if kvm.is_some() { Acceleration::Kvm } else { Acceleration::Tcg })
}

/// How long the test guest took; None: it did not come to its end. It is ended with its handle.
async fn boot(state: &Path, acceleration: Acceleration, limit: Duration) -> Option<Duration> {
    let begin = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", acceleration.name(), "-machine", "pc", "-m", "32", "-no-user-config", "-nodefaults"])
        .args(["-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-drive", "file=probe.img,format=raw,if=ide,readonly=off,snapshot=on"])
        .current_dir(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) => (status.code() == Some(EXIT)).then(|| begin.elapsed()),
        Ok(Err(_)) => None,
        Err(_) => {
            // A guest stuck in the kernel may take its time to die; it is reaped later.
            let _ = child.start_kill();
            None
        }
    }
}
