//! Reads the rules of a table as nft would, for one packet. Knows what `plan` writes, and refuses anything else.

use super::packet::Packet;
use crate::state::{Set, Table};
use std::net::IpAddr;

/// What becomes of a packet in a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Goes on by this device at once.
    Forward(String),
    /// By this rule of this chain.
    Drop {
        chain: String,
        rule: String,
    },
}

/// What a rule does with a packet that it matches.
enum Flow {
    Next,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    Forward(String),
}

/// Chains that call chains: deeper than nft allows.
const DEPTH_MAX: usize = 16;

/// Runs the chains of a hook, in the order of their priorities.
///
/// Errors: a rule that is not understood, with its text.
pub fn hook(table: &Table, hook: &str, packet: &mut Packet) -> Result<Verdict, String> {
    let wanted = format!("hook {hook} ");
    let mut chains: Vec<(i32, &str)> = Vec::new();
    for line in table.base.iter().filter_map(|line| line.strip_prefix("chain ")) {
        let name = line.split(' ').next().unwrap_or_default();
        let Some((_, rest)) = line.split_once(&wanted) else { continue };
        let (devices, rest) = rest.split_once("priority ").unwrap_or_default();
        if !devices.is_empty() && !devices.split('"').any(|device| device == packet.came) {
            continue;
        }
        let priority = rest.split(';').next().unwrap_or_default();
        chains
            .push((priority.parse().map_err(|_| format!("the priority of '{line}' is not a number"))?, name));
    }
    chains.sort();
    for (_, name) in chains {
        match (Reader { table, packet }).chain(name, 0)? {
            Some(end @ (Verdict::Drop { .. } | Verdict::Forward(_))) => return Ok(end),
            Some(Verdict::Accept) | None => {}
        }
    }
    Ok(Verdict::Accept)
}

struct Reader<'a> {
    table: &'a Table,
    packet: &'a mut Packet,
}

impl<'a> Reader<'a> {
    fn rules(&self, chain: &str) -> Vec<&'a str> {
        let table = self.table;
        if let Some(rules) = table.chains.get(chain) {
            return rules.iter().map(String::as_str).collect();
        }
        let start = format!("rule {chain} ");
        table.base.iter().filter_map(|line| line.strip_prefix(start.as_str())).collect()
    }

    /// None: it ended without a verdict, and the caller goes on.
    fn chain(&mut self, name: &str, depth: usize) -> Result<Option<Verdict>, String> {
        if depth > DEPTH_MAX {
            return Err(format!("the chain '{name}' calls itself"));
        }
        for rule in self.rules(name) {
            match self.rule(rule).map_err(|why| format!("{why}: in the rule '{rule}'"))? {
                Flow::Next => {}
                Flow::Accept => return Ok(Some(Verdict::Accept)),
                Flow::Return => return Ok(None),
                Flow::Drop => {
                    return Ok(Some(Verdict::Drop { chain: name.to_string(), rule: rule.to_string() }));
                }
                Flow::Jump(to) => {
                    if let Some(verdict) = self.chain(&to, depth + 1)? {
                        return Ok(Some(verdict));
                    }
                }
                Flow::Goto(to) => return self.chain(&to, depth + 1),
                Flow::Forward(device) => return Ok(Some(Verdict::Forward(device))),
            }
        }
        Ok(None)
    }

    fn rule(&mut self, rule: &str) -> Result<Flow, String> {
        let mut words = Words::of(rule);
        while let Some(word) = words.next() {
            match word.as_str() {
                "accept" => return Ok(Flow::Accept),
                "drop" => return Ok(Flow::Drop),
                "return" => return Ok(Flow::Return),
                "jump" => return Ok(Flow::Jump(words.need()?)),
                "goto" => return Ok(Flow::Goto(words.need()?)),
                "notrack" | "counter" | "masquerade" => {}
                // Sizes of segments, and the cache of established flows: neither decides where a first packet goes.
                "tcp" if words.peek() == Some("option") => return Ok(Flow::Next),
                "flow" => return Ok(Flow::Next),
                "fwd" => {
                    let before = if words.peek() == Some("to") { "to" } else { "device" };
                    while words.need()? != before {}
                    return Ok(self.value(&mut words)?.map_or(Flow::Next, Flow::Forward));
                }
                "ether" if words.ahead(0) == Some("saddr") && words.ahead(1) == Some("set") => {
                    words.skip(2);
                    let mac = words.need()?;
                    self.packet.source_mac = mac.parse().map_err(|_| format!("'{mac}' is no MAC"))?;
                }
                "snat" | "dnat" => {
                    if !self.translate(&word, &mut words)? {
                        return Ok(Flow::Next);
                    }
                    return Ok(Flow::Accept);
                }
                "meta" if words.ahead(0) == Some("mark") && words.ahead(1) == Some("set") => {
                    words.skip(2);
                    match self.value(&mut words)? {
                        Some(mark) => {
                            self.packet.mark = mark.parse().map_err(|_| format!("'{mark}' is no mark"))?
                        }
                        None => return Ok(Flow::Next),
                    }
                }
                _ => match self.matches(word, &mut words)? {
                    Match::Yes => {}
                    Match::No => return Ok(Flow::Next),
                    Match::Verdict(flow) => return Ok(flow),
                },
            }
        }
        Ok(Flow::Next)
    }

    /// The key of one field or of several with dots between; none when the packet lacks one of them.
    fn key(&self, first: String, words: &mut Words) -> Result<Option<Vec<String>>, String> {
        let (mut key, mut whole, mut word) = (Vec::new(), true, first);
        loop {
            let name = words.field(word)?;
            match self.packet.field(&name)? {
                Some(value) => key.push(value),
                None => whole = false,
            }
            if words.peek() != Some(".") {
                return Ok(whole.then_some(key));
            }
            words.skip(1);
            word = words.need()?;
        }
    }

    fn matches(&self, first: String, words: &mut Words) -> Result<Match, String> {
        let key = self.key(first, words)?;
        if words.peek() == Some("vmap") {
            words.skip(1);
            let verdict = key.and_then(|key| self.look_up(&words.need().ok()?, &key));
            return verdict.map_or(Ok(Match::No), |text| {
                let mut verdict = Words::of(&text);
                match (verdict.need()?.as_str(), verdict.next()) {
                    ("goto", Some(to)) => Ok(Match::Verdict(Flow::Goto(to))),
                    ("jump", Some(to)) => Ok(Match::Verdict(Flow::Jump(to))),
                    _ => Err(format!("the verdict '{text}' is not known to the trace")),
                }
            });
        }
        let mut mask = None;
        if words.peek() == Some("&") {
            words.skip(1);
            mask = Some(words.need()?);
        }
        let not = words.peek() == Some("!=");
        if not {
            words.skip(1);
        }
        let more = words.peek() == Some(">");
        if more {
            words.skip(1);
        }
        let wanted = words.need()?;
        if words.peek() == Some("/") {
            // `tcp flags syn / syn,rst`: of these flags these are set.
            words.skip(2);
        }
        let Some(key) = key else { return Ok(Match::No) };
        let is = match (wanted.strip_prefix('@'), &mask) {
            (Some(_), _) => self.look_up(&wanted, &key).is_some(),
            (None, None) if more => key[0].parse::<u32>().ok() > wanted.parse::<u32>().ok(),
            (None, Some(mask)) => masked(&key[0], mask)? == wanted,
            (None, None) => alternatives(&wanted).any(|wanted| is(&wanted, &key[0])),
        };
        Ok(if is != not { Match::Yes } else { Match::No })
    }

    /// A plain value, or what a map has for the packet.
    fn value(&self, words: &mut Words) -> Result<Option<String>, String> {
        let first = words.need()?;
        if words.peek().is_none() || first.parse::<IpAddr>().is_ok() || first.parse::<u32>().is_ok() {
            return Ok(Some(first));
        }
        if first.contains(':') && first.parse::<IpAddr>().is_err() {
            return Ok(Some(first));
        }
        let key = self.key(first, words)?;
        if words.need()? != "map" {
            return Err("a map is missing".to_string());
        }
        let map = words.need()?;
        Ok(key.and_then(|key| self.look_up(&map, &key)))
    }

    /// `snat ip to ...`: false when no map has the packet.
    fn translate(&mut self, kind: &str, words: &mut Words) -> Result<bool, String> {
        while words.peek() == Some("ip") && words.ahead(1) == Some("to") || words.peek() == Some("to") {
            words.skip(1);
        }
        let Some(value) = self.value(words)? else { return Ok(false) };
        let mut parts = value.split(" . ");
        let address = parts.next().unwrap_or_default();
        let address = address.split(':').next().unwrap_or_default();
        let address: IpAddr = address.parse().map_err(|_| format!("'{address}' is no address"))?;
        if kind == "snat" {
            self.packet.source = address;
            return Ok(true);
        }
        (self.packet.target, self.packet.translated) = (address, true);
        if let (Some(port), Some(ports)) = (parts.next().and_then(|p| p.parse().ok()), &mut self.packet.ports)
        {
            ports.1 = port;
        }
        Ok(true)
    }

    fn look_up(&self, set: &str, key: &[String]) -> Option<String> {
        let set: &Set = self.table.sets.get(set.trim_start_matches('@'))?;
        if let Some(value) = set.elements.get(key) {
            return Some(value.clone());
        }
        if !set.of.contains("interval") {
            return None;
        }
        let fits = |element: &&Vec<String>| {
            element.len() == key.len() && element.iter().zip(key).all(|(wanted, value)| is(wanted, value))
        };
        set.elements.iter().find(|(element, _)| fits(element)).map(|(_, value)| value.clone())
    }
}

enum Match {
    Yes,
    No,
    Verdict(Flow),
}

/// The members of `{ a, b }` or `a,b`, or the value alone.
fn alternatives(text: &str) -> impl Iterator<Item = String> {
    let inner = text.trim_start_matches('{').trim_end_matches('}');
    inner.split(',').map(|part| part.trim().to_string())
}

/// Names for numbers that rules use.
const NAMES: [(&str, &str); 11] = [
    ("tcp", "6"),
    ("udp", "17"),
    ("icmp", "1"),
    ("dccp", "33"),
    ("sctp", "132"),
    ("udplite", "136"),
    ("echo-reply", "0"),
    ("destination-unreachable", "3"),
    ("time-exceeded", "11"),
    ("parameter-problem", "12"),
    ("echo-request", "8"),
];

/// Whether a value is what is wanted: itself, in a prefix, or in a range.
fn is(wanted: &str, value: &str) -> bool {
    let named = NAMES.iter().find(|(name, _)| *name == wanted).is_some_and(|(_, number)| *number == value);
    if wanted == value || named {
        return true;
    }
    if let (Ok(net), Ok(address)) = (wanted.parse::<ipnet::IpNet>(), value.parse::<IpAddr>()) {
        return net.contains(&address);
    }
    let range =
        wanted.split_once('-').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
    range.zip(value.parse::<u32>().ok()).is_some_and(|((first, last), value)| (first..=last).contains(&value))
}

/// A MAC under a mask.
fn masked(value: &str, mask: &str) -> Result<String, String> {
    let bytes = |text: &str| -> Result<Vec<u8>, String> {
        let parts = text.split(':').map(|part| u8::from_str_radix(part, 16));
        parts.collect::<Result<_, _>>().map_err(|_| format!("'{text}' is no MAC"))
    };
    let (value, mask) = (bytes(value)?, bytes(mask)?);
    let under: Vec<String> =
        value.iter().zip(&mask).map(|(value, mask)| format!("{:02x}", value & mask)).collect();
    Ok(under.join(":"))
}

/// The words of a rule: quoted names without quotes, a set in braces as one word.
struct Words {
    words: Vec<String>,
    at: usize,
}

impl Words {
    fn of(rule: &str) -> Words {
        let mut words: Vec<String> = Vec::new();
        let mut open = false;
        for word in rule.split_whitespace() {
            match words.last_mut().filter(|_| open) {
                Some(last) => last.push_str(word),
                None => words.push(word.trim_matches('"').to_string()),
            }
            open = (open || word.starts_with('{')) && !word.ends_with('}');
        }
        Words { words, at: 0 }
    }

    fn next(&mut self) -> Option<String> {
        self.at += 1;
        self.words.get(self.at - 1).cloned()
    }

    fn need(&mut self) -> Result<String, String> {
        self.next().ok_or_else(|| "a word is missing".to_string())
    }

    fn peek(&self) -> Option<&str> {
        self.ahead(0)
    }

    fn ahead(&self, n: usize) -> Option<&str> {
        self.words.get(self.at + n).map(String::as_str)
    }

    fn skip(&mut self, n: usize) {
        self.at += n;
    }

    /// The name of a field, of as many words as it has.
    fn field(&mut self, first: String) -> Result<String, String> {
        match first.as_str() {
            "iifname" | "oifname" => Ok(first),
            raw if raw.starts_with('@') => Ok(first),
            "arp" if matches!(self.peek(), Some("saddr" | "daddr")) => {
                Ok(format!("arp {} {}", self.need()?, self.need()?))
            }
            "ether" | "ip" | "ip6" | "tcp" | "udp" | "th" | "icmp" | "icmpv6" | "arp" | "meta" | "ct" => {
                Ok(format!("{first} {}", self.need()?))
            }
            unknown => Err(format!("'{unknown}' is not known to the trace")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::packet;
    use std::collections::BTreeMap;

    fn check(rules: &[&str], expect: Result<&str, &str>) {
        let mut base = vec!["chain c { type filter hook forward priority 0; policy accept; }".to_string()];
        base.extend(rules.iter().map(|rule| format!("rule c {rule}")));
        let set = |of: &str, elements: &[(&[&str], &str)]| Set {
            of: of.to_string(),
            elements: elements
                .iter()
                .map(|(key, value)| (key.iter().map(|k| k.to_string()).collect(), value.to_string()))
                .collect(),
        };
        let sets = BTreeMap::from([
            ("nets".to_string(), set("type ipv4_addr; flags interval", &[(&["10.0.0.0/24"], "")])),
            ("map".to_string(), set("type ipv4_addr : ipv4_addr", &[(&["10.0.0.5"], "192.0.2.7")])),
            ("steer".to_string(), set("typeof x : mark; flags interval", &[(&["10.0.1.6", "20-30"], "77")])),
            ("to".to_string(), set("type ifname : verdict", &[(&["tap1"], "goto end")])),
            ("by".to_string(), set("type ipv4_addr . x : iface_index", &[(&["10.0.0.5", "22"], "qr-c")])),
        ]);
        let chains = BTreeMap::from([("end".to_string(), vec!["drop".to_string()])]);
        let table = Table { base, sets, chains, ..Table::default() };
        let mut packet = packet("10.0.0.5", "10.0.1.6", 6, Some((1000, 22)));
        packet.came = "tap1".into();
        let got = hook(&table, "forward", &mut packet).map(|verdict| match verdict {
            Verdict::Accept => format!("{} {} {}", packet.source, packet.target, packet.mark),
            Verdict::Drop { chain, rule } => format!("{chain}: {rule}"),
            Verdict::Forward(device) => format!("by {device}"),
        });
        match (got, expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, expect, "{rules:?}"),
            (Err(got), Err(expect)) => assert!(got.contains(expect), "{got}"),
            (got, expect) => panic!("{rules:?}: {got:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn rules_are_read_as_nft_reads_them() {
        let plain = Ok("10.0.0.5 10.0.1.6 0");
        check(&[], plain);
        check(&["ip saddr @nets drop"], Ok("c: ip saddr @nets drop"));
        check(&["ip saddr != @nets drop", "accept", "drop"], plain);
        check(&["ip6 saddr :: drop", "udp dport 22 drop", "icmp type { 8, 0 } drop"], plain);
        check(
            &["meta l4proto { tcp, udp } th dport 20-30 drop"],
            Ok("c: meta l4proto { tcp, udp } th dport 20-30 drop"),
        );
        check(&["iifname vmap @to"], Ok("end: drop"));
        check(&["oifname vmap @to"], plain);
        check(&["jump end"], Ok("end: drop"));
        check(&["snat ip to ip saddr map @map"], Ok("192.0.2.7 10.0.1.6 0"));
        check(&["snat ip to ip daddr map @map", "drop"], Ok("c: drop"));
        check(&["snat ip to 192.0.2.9:2048-4095"], Ok("192.0.2.9 10.0.1.6 0"));
        check(&["meta mark set ip daddr . th dport map @steer"], Ok("10.0.0.5 10.0.1.6 77"));
        check(&["meta mark set 2", "meta mark 2 drop"], Ok("c: meta mark 2 drop"));
        check(&["ether daddr & 01:00:00:00:00:00 != 01:00:00:00:00:00 accept", "drop"], plain);
        check(
            &[
                "tcp flags syn / syn,rst tcp option maxseg size set rt mtu",
                "ct state established,related drop",
            ],
            plain,
        );
        check(&["ip ttl > 1 ip daddr 10.0.9.9 drop", "ip ttl > 64 drop"], plain);
        check(&["ip ttl > 1 ip hdrlength 5 fwd ip to ip daddr device \"qr-b\""], Ok("by qr-b"));
        check(&["fwd ip to ip daddr device ip saddr . th dport map @by"], Ok("by qr-c"));
        check(&["fwd ip to ip daddr device ip daddr . th dport map @by", "drop"], Ok("c: drop"));
        check(
            &["ether saddr set 02:00:00:00:00:07", "ether saddr 02:00:00:00:00:07 drop"],
            Ok("c: ether saddr 02:00:00:00:00:07 drop"),
        );
        check(
            &["ct state established meta l4proto { tcp, udp } flow add @flows", "fwd to \"vxlan0\""],
            Ok("by vxlan0"),
        );
        check(&["vlan id 7 drop"], Err("'vlan' is not known to the trace: in the rule 'vlan id 7 drop'"));
    }
}
