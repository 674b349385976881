//! What is to be done with one guest: decided here, purely; done in `life`.
//!
//! ```text
//! Absent --make, start--> Running --power button--> Halted --end--> Absent
//!                            |                         |
//!                            +--by itself------------> Halted or dead --> Ended (until Off, or a reboot)
//! ```
//!
//! QEMU stays, paused, when its guest powers off (`Halted`), so that this is seen even if nobody looked when it
//! happened. An end that nobody asked for is kept as `Ended`: such a guest is not started again by itself,
//! but by `Off` and `On`, or by a larger reboot count, which is heard even when the node missed the `Off`.

use base::node::{Document, Image, Port, Power, Section, SectionKey, Subnet, Vm, VmReport, VmState};
use std::collections::BTreeSet;
use uuid::Uuid;

/// One guest as the document has it, with all that its machine and metadata are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    pub vm: Vm,
    /// In the order of `vm.ports`; a port without section or network is left out until they are there.
    pub nics: Vec<Nic>,
    pub image: Option<Image>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Nic {
    pub port: Port,
    pub mtu: u32,
    /// The subnets that the port has addresses of, in the order of its addresses.
    pub subnets: Vec<Subnet>,
}

impl Guest {
    pub fn of(document: &Document, id: Uuid) -> Option<Guest> {
        let Some(Section::Vm(vm)) = document.sections.get(&SectionKey::Vm(id)) else { return None };
        let image = match vm.image.and_then(|image| document.sections.get(&SectionKey::Image(image))) {
            Some(Section::Image(image)) => Some(image.clone()),
            _ => None,
        };
        let nics = vm.ports.iter().filter_map(|port| Nic::of(document, *port)).collect();
        Some(Guest { vm: vm.clone(), nics, image })
    }
}

impl Nic {
    fn of(document: &Document, port: Uuid) -> Option<Nic> {
        let Some(Section::Port(port)) = document.sections.get(&SectionKey::Port(port)) else { return None };
        let Some(Section::Network(network)) = document.sections.get(&SectionKey::Network(port.network))
        else {
            return None;
        };
        let mut subnets: Vec<Subnet> = Vec::new();
        for fixed in &port.fixed {
            let subnet = network.subnets.iter().find(|subnet| subnet.id == fixed.subnet);
            subnets.extend(subnet.filter(|subnet| !subnets.contains(subnet)).cloned());
        }
        Some(Nic { port: port.clone(), mtu: network.mtu, subnets })
    }
}

/// What there is of a guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Its directory is there.
    pub files: bool,
    pub root: Option<Root>,
    pub machine: Machine,
}

/// A root disk and the image that it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    pub image: Option<Uuid>,
    pub bytes: u64,
}

/// The QEMU of a guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Machine {
    #[default]
    Absent,
    /// It is gone, and nobody had asked it to go; None: the guest powered off.
    Ended {
        reboots: u64,
        fault: Option<String>,
    },
    /// The guest has powered off, QEMU waits. `asked`: we pressed the button.
    Halted {
        reboots: u64,
        asked: bool,
    },
    Running {
        reboots: u64,
        nics: BTreeSet<Uuid>,
        paused: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Presses the power button and waits for the guest; ends it when it takes too long.
    PowerOff(Patience),
    /// Ends QEMU as one who was asked to.
    End,
    /// Ends a QEMU whose guest powered off by itself, and keeps that in mind.
    EndHalted,
    /// Forgets that the guest ended by itself.
    Forget,
    /// Removes the root disk, which stands on another image.
    RemoveRoot,
    /// Fetches the image, makes what disks are missing, grows the root disk.
    MakeDisks,
    Start,
    AttachNic(Uuid),
    DetachNic(Uuid),
    /// Removes everything of the guest.
    RemoveFiles,
}

/// How long a guest may take to power off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// `life::STOP_SECS_MAX`.
    Stop,
    /// `life::SOFT_REBOOT_SECS_MAX`.
    Reboot,
}

/// The steps from what is seen to what is wanted; none where they agree. None wanted: the guest is to be gone.
pub fn diff(wanted: Option<&Guest>, seen: &Seen) -> Vec<Step> {
    let Some(guest) = wanted else { return away(seen) };
    match guest.vm.power {
        Power::Off => match seen.machine {
            Machine::Absent => vec![],
            Machine::Ended { .. } => vec![Step::Forget],
            Machine::Halted { .. } => vec![Step::End],
            Machine::Running { .. } => vec![Step::PowerOff(Patience::Stop)],
        },
        Power::On => on(guest, seen),
    }
}

fn away(seen: &Seen) -> Vec<Step> {
    let end = match seen.machine {
        Machine::Absent | Machine::Ended { .. } => None,
        Machine::Halted { .. } | Machine::Running { .. } => Some(Step::End),
    };
    end.into_iter().chain(seen.files.then_some(Step::RemoveFiles)).collect()
}

fn on(guest: &Guest, seen: &Seen) -> Vec<Step> {
    let vm = &guest.vm;
    match &seen.machine {
        Machine::Absent => start(guest, seen),
        Machine::Ended { reboots, .. } if vm.reboots > *reboots || rebuilt(guest, seen) => start(guest, seen),
        Machine::Ended { .. } => vec![],
        Machine::Halted { reboots, asked } if *asked || vm.reboots > *reboots => {
            prepend(Step::End, start(guest, seen))
        }
        Machine::Halted { .. } => vec![Step::EndHalted],
        Machine::Running { .. } if rebuilt(guest, seen) => prepend(Step::End, start(guest, seen)),
        Machine::Running { reboots, .. } if vm.reboots > *reboots => {
            let end = if vm.reboot_hard { Step::End } else { Step::PowerOff(Patience::Reboot) };
            prepend(end, start(guest, seen))
        }
        Machine::Running { nics, .. } => plugged(guest, nics),
    }
}

fn prepend(first: Step, mut steps: Vec<Step>) -> Vec<Step> {
    steps.insert(0, first);
    steps
}

fn rebuilt(guest: &Guest, seen: &Seen) -> bool {
    seen.root.is_some_and(|root| root.image != guest.vm.image)
}

fn start(guest: &Guest, seen: &Seen) -> Vec<Step> {
    let remove = rebuilt(guest, seen).then_some(Step::RemoveRoot);
    remove.into_iter().chain([Step::MakeDisks, Step::Start]).collect()
}

fn plugged(guest: &Guest, there: &BTreeSet<Uuid>) -> Vec<Step> {
    let wanted: BTreeSet<Uuid> = guest.nics.iter().map(|nic| nic.port.id).collect();
    // A port whose section has not come yet is not pulled from a running guest.
    let gone = there.iter().filter(|id| !guest.vm.ports.contains(id)).map(|id| Step::DetachNic(*id));
    gone.chain(wanted.difference(there).map(|id| Step::AttachNic(*id))).collect()
}

/// What is told of a guest. `fault`: why the last step failed for good.
pub fn report(
    wanted: Option<&Guest>,
    seen: &Seen,
    fault: Option<&str>,
    password: Option<String>,
) -> VmReport {
    let on = wanted.is_some_and(|guest| guest.vm.power == Power::On);
    let (state, reboots, ended) = match &seen.machine {
        Machine::Absent if on => (VmState::Building, 0, None),
        Machine::Absent => (VmState::Stopped, 0, None),
        Machine::Ended { reboots, fault: None } => (VmState::Stopped, *reboots, None),
        Machine::Ended { reboots, fault } => (VmState::Failed, *reboots, fault.as_deref()),
        Machine::Halted { reboots, .. } => (VmState::Running, *reboots, None),
        Machine::Running { reboots, paused: true, .. } => (VmState::Paused, *reboots, None),
        Machine::Running { reboots, .. } => (VmState::Running, *reboots, None),
    };
    let state = match (fault, state) {
        (Some(_), VmState::Building) => VmState::Failed,
        _ => state,
    };
    VmReport { state, reboots, fault: fault.or(ended).map(String::from), password }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::GuestMetadata;

    fn guest(power: Power, reboots: u64, hard: bool) -> Guest {
        let vm = Vm {
            id: Uuid::from_u128(1),
            power,
            reboots,
            reboot_hard: hard,
            vcpus: 1,
            memory_mib: 64,
            root_gib: 1,
            ephemeral_gib: 0,
            swap_mib: 0,
            image: Some(Uuid::from_u128(7)),
            ports: vec![],
            config_drive: false,
            metadata: GuestMetadata::default(),
            maintenance: None,
        };
        Guest { vm, nics: vec![], image: None }
    }

    fn running(reboots: u64, nics: &[u128]) -> Machine {
        let nics = nics.iter().map(|n| Uuid::from_u128(*n)).collect();
        Machine::Running { reboots, nics, paused: false }
    }

    fn ended(fault: Option<&str>) -> Machine {
        Machine::Ended { reboots: 0, fault: fault.map(String::from) }
    }

    fn seen(image: u128, machine: Machine) -> Seen {
        let root = Root { image: Some(Uuid::from_u128(image)), bytes: 1 << 30 };
        Seen { files: true, root: Some(root), machine }
    }

    fn check(wanted: Option<Guest>, seen: Seen, steps: &[Step], state: VmState) {
        assert_eq!(diff(wanted.as_ref(), &seen), steps, "{wanted:?} {seen:?}");
        assert_eq!(report(wanted.as_ref(), &seen, None, None).state, state, "{wanted:?} {seen:?}");
    }

    #[test]
    fn a_guest_that_is_wanted_runs() {
        use Step::*;
        use VmState::*;
        let on = || Some(guest(Power::On, 0, false));
        check(on(), Seen::default(), &[MakeDisks, Start], Building);
        check(on(), seen(7, Machine::Absent), &[MakeDisks, Start], Building);
        check(on(), seen(7, running(0, &[])), &[], Running);
        check(
            on(),
            seen(7, Machine::Running { reboots: 0, nics: BTreeSet::new(), paused: true }),
            &[],
            Paused,
        );
        check(on(), seen(8, running(0, &[])), &[End, RemoveRoot, MakeDisks, Start], Running);
        check(on(), seen(8, ended(None)), &[RemoveRoot, MakeDisks, Start], Stopped);
    }

    #[test]
    fn an_end_that_nobody_asked_for_is_kept_and_told() {
        use Step::*;
        use VmState::*;
        let on = |reboots| Some(guest(Power::On, reboots, true));
        check(on(0), seen(7, Machine::Halted { reboots: 0, asked: false }), &[EndHalted], Running);
        check(on(0), seen(7, ended(None)), &[], Stopped);
        check(on(0), seen(7, ended(Some("killed"))), &[], Failed);
        check(on(1), seen(7, ended(None)), &[MakeDisks, Start], Stopped);
        let off = Some(guest(Power::Off, 0, false));
        check(off, seen(7, ended(Some("killed"))), &[Forget], Failed);
        check(on(0), seen(7, Machine::Halted { reboots: 0, asked: true }), &[End, MakeDisks, Start], Running);
    }

    #[test]
    fn a_stop_asks_first_and_a_reboot_as_it_is_told() {
        use Step::*;
        use VmState::*;
        let off = || Some(guest(Power::Off, 0, false));
        check(off(), seen(7, running(0, &[])), &[PowerOff(Patience::Stop)], Running);
        check(off(), seen(7, Machine::Halted { reboots: 0, asked: true }), &[End], Running);
        check(off(), seen(7, Machine::Absent), &[], Stopped);
        check(off(), Seen::default(), &[], Stopped);
        let soft = Some(guest(Power::On, 2, false));
        check(soft, seen(7, running(1, &[])), &[PowerOff(Patience::Reboot), MakeDisks, Start], Running);
        let hard = Some(guest(Power::On, 2, true));
        check(hard, seen(7, running(1, &[])), &[End, MakeDisks, Start], Running);
    }

    #[test]
    fn a_guest_that_is_not_wanted_leaves_nothing() {
        use Step::*;
        use VmState::*;
        check(None, seen(7, running(0, &[])), &[End, RemoveFiles], Running);
        check(None, seen(7, ended(None)), &[RemoveFiles], Stopped);
        check(None, Seen::default(), &[], Stopped);
    }

    #[test]
    fn nics_are_plugged_and_pulled_while_the_guest_runs() {
        let port = |n| Port {
            id: Uuid::from_u128(n),
            network: Uuid::nil(),
            vm: None,
            mac: Default::default(),
            admin_up: true,
            fixed: vec![],
            pairs: vec![],
            port_security: true,
            rules: None,
            floating: vec![],
            dhcp_options: vec![],
            name: String::new(),
        };
        let mut wanted = guest(Power::On, 0, false);
        wanted.vm.ports = [2, 3, 4].map(Uuid::from_u128).into();
        wanted.nics = [2, 3].map(|n| Nic { port: port(n), mtu: 1450, subnets: vec![] }).into();
        let steps = [Step::DetachNic(Uuid::from_u128(1)), Step::AttachNic(Uuid::from_u128(3))];
        check(Some(wanted), seen(7, running(0, &[1, 2, 4])), &steps, VmState::Running);
    }
}
