//! The rules of a rule set, as the chain of one direction.
//!
//! Packets from the side that began a connection are asked the rules, each of them, so one that is removed ends at once
//! what it allowed; answers are let through by the state of the connection. All rules of a set accept, so their order is
//! free: those for everything come first, then the state, then one rule per remote and protocol with all of its ports.

use super::Tracking;
use super::ports::group_set;
use base::node::{Direction, Remote, Rule, RuleSet};
use std::collections::{BTreeMap, BTreeSet};

/// DCCP, SCTP, TCP, UDP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// What of a packet a rule looks at first: rules that agree in it are one rule.
type Kind = (u8, bool, String);

pub fn chain(set: &RuleSet, direction: Direction, tracking: Tracking) -> Vec<String> {
    let (mut all, mut ports, mut others) =
        (BTreeSet::new(), BTreeMap::<Kind, Vec<_>>::new(), BTreeSet::new());
    for rule in set.rules.iter().filter(|rule| rule.direction == direction) {
        let Some(remote) = remote_text(rule) else { continue };
        let family = family(rule.v6);
        match rule.protocol {
            None if remote.is_empty() => drop(all.insert(format!("ether type {family} accept"))),
            Some(number) if WITH_PORTS.contains(&number) => {
                ports.entry((number, rule.v6, remote)).or_default().push(range(rule));
            }
            None | Some(_) => {
                let protocol = protocol_text(rule);
                others.insert(format!("ether type {family}{remote}{protocol} accept"));
            }
        }
    }
    let state = State::of(set.stateful, tracking, direction);
    let mut rules: Vec<String> = state.invalid.iter().map(|rule| rule.to_string()).collect();
    rules.extend(all);
    rules.extend(state.known.iter().map(|rule| rule.to_string()));
    // The protocol is at hand, the type of the frame is not.
    rules.extend(ports.into_iter().map(|((number, v6, remote), ranges)| {
        format!("meta l4proto {number} ether type {}{remote}{} accept", family(v6), ports_text(ranges))
    }));
    rules.extend(others);
    rules.extend(state.rare.iter().map(|rule| rule.to_string()));
    rules.push(format!("jump base_{}", if direction == Direction::Ingress { "in" } else { "out" }));
    rules.push("drop".to_string());
    rules
}

fn family(v6: bool) -> &'static str {
    if v6 { "ip6" } else { "ip" }
}

/// What the state of a connection says whatever the rules say.
struct State {
    /// Dropped before all rules.
    invalid: &'static [&'static str],
    /// Answers.
    known: &'static [&'static str],
    /// What few packets are: errors about a connection, and what the node itself says, which has no connection.
    rare: &'static [&'static str],
}

impl State {
    fn of(stateful: bool, tracking: Tracking, direction: Direction) -> State {
        let (invalid, known, rare): (&[&str], &[&str], &[&str]) = match (stateful, tracking, direction) {
            (false, _, Direction::Ingress) => (&[], &[], &["meta mark 8 accept"]),
            (false, _, Direction::Egress) => (&[], &[], &[]),
            (true, Tracking::BrNetfilter, Direction::Ingress) => {
                (&["meta mark 2 drop"], &["meta mark 1 accept"], &["meta mark 8 accept"])
            }
            (true, Tracking::BrNetfilter, Direction::Egress) => {
                (&["meta mark 2 drop"], &["meta mark 1 accept"], &[])
            }
            (true, Tracking::Bridge, Direction::Ingress) => (
                &["ct state invalid meta mark != 8 drop"],
                &["ct direction reply ct state established accept"],
                &["ct state related accept", "meta mark 8 accept"],
            ),
            (true, Tracking::Bridge, Direction::Egress) => (
                &["ct state invalid drop"],
                &["ct direction reply ct state established accept"],
                &["ct state related accept"],
            ),
        };
        State { invalid, known, rare }
    }
}

/// None when it can never match.
fn remote_text(rule: &Rule) -> Option<String> {
    let ip = if rule.v6 { "ip6" } else { "ip" };
    let end = if rule.direction == Direction::Ingress { "saddr" } else { "daddr" };
    match rule.remote {
        Remote::Any => Some(String::new()),
        Remote::Cidr(net) if net.addr().is_ipv6() != rule.v6 => None,
        Remote::Cidr(net) if net.prefix_len() == 0 => Some(String::new()),
        Remote::Cidr(net) => Some(format!(" {ip} {end} {}", net.trunc())),
        Remote::Group(group) => Some(format!(" {ip} {end} @{}", group_set(group, rule.v6))),
    }
}

/// Of protocols without ports.
fn protocol_text(rule: &Rule) -> String {
    match rule.protocol {
        None => String::new(),
        Some(1 | 58) => {
            let (number, word) = if rule.v6 { (58, "icmpv6") } else { (1, "icmp") };
            let kind = rule.min.map(|kind| format!(" {word} type {kind}")).unwrap_or_default();
            let code = rule.max.map(|code| format!(" {word} code {code}")).unwrap_or_default();
            format!(" meta l4proto {number}{kind}{code}")
        }
        Some(number) => format!(" meta l4proto {number}"),
    }
}

/// The ports of a rule, first and last.
fn range(rule: &Rule) -> (u16, u16) {
    if (rule.min, rule.max) == (None, None) {
        return (0, u16::MAX);
    }
    let min = rule.min.unwrap_or(0);
    (min, rule.max.unwrap_or(min).max(min))
}

/// Ranges as one match: those that meet are one, as a set takes no two that overlap.
fn ports_text(mut ranges: Vec<(u16, u16)>) -> String {
    ranges.sort();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (min, max) in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(min) <= u32::from(last.1) + 1 => last.1 = last.1.max(max),
            _ => merged.push((min, max)),
        }
    }
    let text = |(min, max): &(u16, u16)| if min == max { min.to_string() } else { format!("{min}-{max}") };
    match &merged[..] {
        [(0, u16::MAX)] => String::new(),
        [one] => format!(" th dport {}", text(one)),
        many => format!(" th dport {{ {} }}", many.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: Option<u8>, ports: Option<(u16, u16)>, remote: Remote) -> Rule {
        let (min, max) = (ports.map(|p| p.0), ports.map(|p| p.1));
        Rule { direction: Direction::Ingress, v6: false, protocol, min, max, remote }
    }

    fn check(rules: &[Rule], expect: &[&str]) {
        let set = RuleSet { rules: rules.to_vec(), stateful: true };
        let seen = chain(&set, Direction::Ingress, Tracking::Bridge);
        assert_eq!(seen[0], "ct state invalid meta mark != 8 drop");
        let state = State::of(true, Tracking::Bridge, Direction::Ingress);
        let state = [state.known, state.rare].concat();
        let seen: Vec<&str> =
            seen[1..].iter().map(String::as_str).filter(|rule| !state.contains(rule)).collect();
        assert_eq!(seen[..seen.len() - 2], *expect);
        assert_eq!(seen[seen.len() - 2..], ["jump base_in", "drop"]);
    }

    #[test]
    fn rules_that_differ_in_ports_are_one() {
        let net = Remote::Cidr("192.0.2.0/24".parse().unwrap());
        check(&[], &[]);
        check(
            &[
                rule(Some(6), Some((22, 22)), Remote::Any),
                rule(Some(6), Some((8000, 8010)), Remote::Any),
                rule(Some(6), Some((8005, 8020)), Remote::Any),
                rule(Some(6), Some((8021, 8021)), Remote::Any),
                rule(Some(17), None, net),
                rule(Some(1), None, Remote::Any),
            ],
            &[
                "meta l4proto 6 ether type ip th dport { 22, 8000-8021 } accept",
                "meta l4proto 17 ether type ip ip saddr 192.0.2.0/24 accept",
                "ether type ip meta l4proto 1 accept",
            ],
        );
        check(&[rule(None, None, Remote::Any), rule(None, None, Remote::Any)], &["ether type ip accept"]);
    }
}
