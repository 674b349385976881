//! What kernels' calls cost on the nodes, and whose are many times slower than its peers'.

use crate::node::Node;
use base::node::KernelCosts;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use store::State;

/// A node is slow at what costs at least so many times the median of its peers.
pub const SLOW_TIMES: u64 = 5;

/// What a node is slow at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    pub what: &'static str,
    /// How many times its peers' median it costs.
    pub times: u64,
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} cost {} times its peers' median", self.what, self.times)
    }
}

/// A word and where it stands in the costs.
type Kind = (&'static str, fn(&KernelCosts) -> u64);

const KINDS: [Kind; 3] =
    [("links", |c| c.link_us), ("rules", |c| c.rules_us), ("namespaces", |c| c.namespace_us)];

/// The nodes that are slow, by name, with what they are slow at.
pub fn slow(state: &State) -> BTreeMap<String, Vec<Slow>> {
    let told = |n: &Arc<Node>| Some((n.hello.name.clone(), n.costs?));
    compare(&state.all::<Node>().filter_map(told).collect::<Vec<_>>())
}

fn compare(nodes: &[(String, KernelCosts)]) -> BTreeMap<String, Vec<Slow>> {
    let mut out = BTreeMap::<String, Vec<Slow>>::new();
    for (what, of) in KINDS {
        let mut sorted: Vec<(u64, &str)> = nodes.iter().map(|(name, c)| (of(c), name.as_str())).collect();
        sorted.sort_unstable();
        let Some(peers) = sorted.len().checked_sub(1).filter(|peers| *peers > 0) else { continue };
        for (at, (own, name)) in sorted.iter().enumerate() {
            // Without the node itself the list is shorter by one from its place on.
            let middle = (peers - 1) / 2;
            let (median, _) = sorted[if at <= middle { middle + 1 } else { middle }];
            let times = own / median.max(1);
            if times >= SLOW_TIMES {
                out.entry(name.to_string()).or_default().push(Slow { what, times });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(links: &[u64], expect: &[(usize, u64)]) {
        let costs = |link_us| KernelCosts { link_us, rules_us: 10, namespace_us: 0 };
        let nodes: Vec<_> = links.iter().enumerate().map(|(n, us)| (format!("{n}"), costs(*us))).collect();
        let slow = |(n, times): &(usize, u64)| (format!("{n}"), vec![Slow { what: "links", times: *times }]);
        assert_eq!(compare(&nodes), expect.iter().map(slow).collect(), "{links:?}");
    }

    #[test]
    fn a_node_is_compared_with_the_others() {
        check(&[], &[]);
        check(&[9_000], &[]);
        check(&[100, 9_000], &[(1, 90)]);
        check(&[9_000, 100, 120], &[(0, 90)]);
        check(&[100, 120, 499, 110], &[]);
        check(&[100, 100, 500, 100], &[(2, 5)]);
        // Where half are slow, that is what is usual; the quick ones are not slow.
        check(&[100, 1_000, 1_000, 1_000], &[]);
    }

    #[test]
    fn what_is_slow_is_a_sentence() {
        assert_eq!(Slow { what: "links", times: 7 }.to_string(), "links cost 7 times its peers' median");
    }
}
