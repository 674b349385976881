//! One guest: what is wanted and seen of it (`plan`), its life (`life`), its QEMU (`machine`, `qmp`, `process`).

pub mod cgroup;
pub mod disk;
pub mod life;
pub mod machine;
pub mod plan;
pub mod probe;
pub mod process;
pub mod qmp;
