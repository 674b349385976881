//! The loop that measures what the kernel's calls cost on this node, and tells the plane when it is something else.
//!
//! A cloud makes links, rules and namespaces all day; a kernel on which they cost many times more than on its peers is
//! an operator's to know. Measured at the start and then rarely: each time takes a few hundred calls.

use crate::observed::Observed;
use base::Result;
use base::pass::{Next, Pass};
use fabric::Fabric;
use std::sync::Arc;
use std::time::Duration;

pub struct KernelCostsKnown {
    pub observed: Arc<Observed>,
}

impl Pass for KernelCostsKnown {
    const NAME: &'static str = "kernel_costs_known";
    const EVERY: Duration = Duration::from_secs(6 * 3600);

    async fn pass(&mut self) -> Result<Next> {
        let costs = Fabric::costs().await?;
        if self.observed.costs(costs) {
            let (link, rules, namespace) = (costs.link_us, costs.rules_us, costs.namespace_us);
            tracing::info!(
                "on this kernel a link costs {link} us, rules {rules} us, a namespace {namespace} us"
            );
        }
        Ok(Next::Usual)
    }
}
