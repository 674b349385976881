//! What this kernel's calls cost: a link, a batch of rules and a namespace made and removed, as a node does it all day.
//!
//! Everything is in namespaces without a name, which end with their last holder: nothing of the host's is touched, and
//! a crash leaves nothing. A figure is the least of `ROUNDS`: what load adds is not the kernel's.

use super::netlink::Netlink;
use super::{link, netns, nft};
use base::Result;
use base::node::KernelCosts;
use std::fmt::Write;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// Rules of a batch.
const RULES: u16 = 32;

pub fn costs() -> Result<KernelCosts> {
    let namespace_us = least(|| netns::unnamed().map(drop))?;
    let (link_us, rules_us) = netns::inside(netns::unnamed()?, || {
        let mut route = Netlink::route()?;
        let link = least(|| {
            link::pair(&mut route, "probe", "eborp")?;
            link::remove(&mut route, "probe")
        })?;
        let batch = batch();
        let rules = least(|| {
            nft::apply(&batch)?;
            nft::apply("delete table inet probe\n")
        })?;
        Ok((link, rules))
    })?;
    Ok(KernelCosts { link_us, rules_us, namespace_us })
}

fn batch() -> String {
    let mut batch = String::from(
        "add table inet probe\nadd chain inet probe c { type filter hook forward priority 0; }\n",
    );
    for port in 1..=RULES {
        let _ = writeln!(batch, "add rule inet probe c tcp dport {port} accept");
    }
    batch
}

fn least(mut work: impl FnMut() -> Result<()>) -> Result<u64> {
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        work()?;
        least = least.min(begin.elapsed());
    }
    Ok(least.as_micros() as u64)
}
