//! What the node sees and has not yet told: one report goes up at a time, with changes only.
//!
//! A change is told again until the plane has taken it. The first report of a process has everything.

use base::node::{Generation, KernelCosts, PortReport, Report, VmReport};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use uuid::Uuid;

#[derive(Default)]
pub struct Observed {
    state: Mutex<State>,
    changed: Notify,
    taken: Notify,
}

/// A guest that posts its password is answered when the plane has it, or after this long.
const PASSWORD_WAIT: Duration = Duration::from_secs(3);

struct State {
    generation: Generation,
    /// The first document has been acted on: what is here is what there is.
    ready: bool,
    whole: bool,
    vms: BTreeMap<Uuid, VmReport>,
    ports: BTreeMap<Uuid, PortReport>,
    costs: Option<KernelCosts>,
    costs_untold: bool,
    /// Ids of guests and ports to tell of; those that are in neither map are gone.
    untold: BTreeSet<Uuid>,
    /// What the report that is on its way tells of.
    on_its_way: BTreeSet<Uuid>,
}

impl Default for State {
    fn default() -> State {
        State {
            generation: Generation::default(),
            ready: false,
            whole: true,
            vms: BTreeMap::new(),
            ports: BTreeMap::new(),
            costs: None,
            costs_untold: false,
            untold: BTreeSet::new(),
            on_its_way: BTreeSet::new(),
        }
    }
}

impl Observed {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the maps as they are: each change is one insertion.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on what is seen was seen by one who knows this document.
    pub fn acted_on(&self, generation: Generation) {
        let mut state = self.state();
        state.generation = generation;
        state.ready = true;
        self.changed.notify_one();
    }

    /// None: the guest is gone.
    pub fn vm(&self, id: Uuid, seen: Option<VmReport>) {
        let mut state = self.state();
        if put(&mut state.vms, id, seen) {
            state.untold.insert(id);
            self.changed.notify_one();
        }
    }

    /// The guest has posted its password; waits until the plane has it, so that its owner reads it at once.
    pub async fn password(&self, id: Uuid, text: String) {
        if let Some(vm) = self.vm_now(id) {
            self.vm(id, Some(VmReport { password: Some(text), ..vm }));
        }
        let told = async {
            loop {
                let taken = self.taken.notified();
                let waits = |s: &State| s.untold.contains(&id) || s.on_its_way.contains(&id);
                if !waits(&self.state()) {
                    return;
                }
                taken.await;
            }
        };
        let _ = tokio::time::timeout(PASSWORD_WAIT, told).await;
    }

    /// None: the port is gone.
    pub fn port(&self, id: Uuid, seen: Option<PortReport>) {
        let mut state = self.state();
        if put(&mut state.ports, id, seen) {
            state.untold.insert(id);
            self.changed.notify_one();
        }
    }

    /// What calls of the kernel were measured to cost; false: what is known already.
    pub fn costs(&self, seen: KernelCosts) -> bool {
        let mut state = self.state();
        if state.costs.is_some_and(|known| !seen.differs(&known)) {
            return false;
        }
        (state.costs, state.costs_untold) = (Some(seen), true);
        self.changed.notify_one();
        true
    }

    pub fn vm_now(&self, id: Uuid) -> Option<VmReport> {
        self.state().vms.get(&id).cloned()
    }

    pub fn ports_now(&self) -> BTreeSet<Uuid> {
        self.state().ports.keys().copied().collect()
    }

    /// Waits until there is something to tell.
    pub async fn next(&self) -> Report {
        loop {
            if let Some(report) = self.state().take() {
                return report;
            }
            self.changed.notified().await;
        }
    }

    /// The plane has taken the report that was on its way.
    pub fn taken(&self) {
        self.state().on_its_way.clear();
        self.taken.notify_waiters();
    }

    /// The report was not taken: tell it again, with what is true by then.
    pub fn failed(&self, report: &Report) {
        let mut state = self.state();
        state.whole |= report.whole;
        state.costs_untold |= report.costs.is_some();
        state.untold.extend(report.vms.keys().chain(report.ports.keys()).chain(&report.gone));
    }

    /// The next report has everything.
    pub fn tell_all(&self) {
        self.state().whole = true;
        self.changed.notify_one();
    }
}

fn put<T: PartialEq>(map: &mut BTreeMap<Uuid, T>, id: Uuid, seen: Option<T>) -> bool {
    match seen {
        Some(seen) if map.get(&id) == Some(&seen) => false,
        Some(seen) => {
            map.insert(id, seen);
            true
        }
        None => map.remove(&id).is_some(),
    }
}

impl State {
    fn take(&mut self) -> Option<Report> {
        // What document it was seen under is told with what was seen: alone it would be a report of each node for
        // each change of what all share.
        let nothing = !self.whole && !self.costs_untold && self.untold.is_empty();
        if nothing || !self.ready {
            return None;
        }
        let untold = std::mem::take(&mut self.untold);
        self.on_its_way.clone_from(&untold);
        let mut report = Report { generation: self.generation, whole: self.whole, ..Report::default() };
        if std::mem::take(&mut self.costs_untold) || self.whole {
            report.costs = self.costs;
        }
        if self.whole {
            report.vms = self.vms.clone();
            report.ports = self.ports.clone();
        }
        for id in untold {
            match (self.vms.get(&id), self.ports.get(&id)) {
                (None, None) => _ = report.gone.insert(id),
                (Some(vm), _) => _ = report.vms.insert(id, vm.clone()),
                (None, Some(port)) => _ = report.ports.insert(id, port.clone()),
            }
        }
        self.whole = false;
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::node::VmState;

    fn vm(state: VmState) -> Option<VmReport> {
        Some(VmReport { state, reboots: 0, fault: None, password: None })
    }

    #[tokio::test]
    async fn tells_what_calls_cost_when_that_is_another() {
        let observed = Observed::default();
        observed.acted_on(Generation::default());
        assert_eq!(observed.next().await.costs, None);
        let of = |link_us| KernelCosts { link_us, rules_us: 1, namespace_us: 1 };
        assert!(observed.costs(of(100)) && !observed.costs(of(150)));
        let told = observed.next().await;
        assert_eq!(told.costs, Some(of(100)));
        assert!(observed.state().take().is_none());
        observed.failed(&told);
        assert_eq!(observed.next().await.costs, Some(of(100)));
        assert!(observed.costs(of(201)));
        observed.tell_all();
        assert_eq!(observed.next().await.costs, Some(of(201)));
    }

    #[tokio::test]
    async fn tells_everything_first_then_changes_and_again_what_was_not_taken() {
        let observed = Observed::default();
        let [a, b] = [1, 2].map(Uuid::from_u128);
        observed.vm(a, vm(VmState::Running));
        assert!(observed.state().take().is_none());
        observed.acted_on(Generation::default());
        let first = observed.next().await;
        assert!(first.whole && first.vms.len() == 1);
        observed.vm(a, vm(VmState::Running));
        observed.vm(b, vm(VmState::Building));
        let second = observed.next().await;
        assert_eq!((second.whole, second.vms.keys().collect::<Vec<_>>()), (false, vec![&b]));
        observed.failed(&second);
        observed.vm(b, None);
        let third = observed.next().await;
        assert_eq!((third.vms.len(), third.gone), (0, [b].into()));
        observed.acted_on(Generation { epoch: 1, revision: 1 });
        assert!(observed.state().take().is_none(), "nothing was seen under it");
        observed.vm(b, vm(VmState::Running));
        assert_eq!(observed.next().await.generation.revision, 1);
        assert!(observed.state().take().is_none());
    }
}
