//! Security groups and their rules; every project has a `default` group from first sight.

use crate::address_group::AddressGroup;
use crate::attr::{Flag, Meta, missing, nullable};
use crate::default_rule;
use crate::port::{self, Port};
use crate::rbac::{self, Kind, Shared};
use crate::resource::{self, Resource, Wanted};
use crate::{SECURITY_GROUP, SECURITY_GROUP_RULE};
use api::View;
use base::node::{self, Direction};
use base::{Context, Error, Id, IdKind, ProjectId, Result};
use identity::limit;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use store::{Index, IndexPart, Record, State, Tx};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroup {
    pub id: Id<SecurityGroup>,
    pub meta: Meta,
    pub stateful: bool,
}

impl IdKind for SecurityGroup {}

impl Shared for SecurityGroup {
    const RBAC: Kind = Kind::SecurityGroup;
}

pub const BY_NAME: Index<SecurityGroup> =
    Index::many("name", |g, keys| keys.push((g.meta.project, g.meta.name.as_str()).key()));

impl Record for SecurityGroup {
    const KIND: &'static str = "security_group";
    type Key = Id<SecurityGroup>;
    const INDEXES: &'static [Index<SecurityGroup>] = &[BY_NAME];

    fn key(&self) -> Id<SecurityGroup> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, SECURITY_GROUP.name, 1);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroupRule {
    pub id: Id<SecurityGroupRule>,
    pub meta: Meta,
    pub group: Id<SecurityGroup>,
    pub direction: Direction,
    pub v6: bool,
    /// As it was written: `tcp`, `6`; none: any.
    pub protocol: Option<String>,
    /// Ports, or ICMP type and code.
    pub min: Option<u16>,
    pub max: Option<u16>,
    pub remote: Remote,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    Any,
    Cidr(IpNet),
    Group(Id<SecurityGroup>),
    Addresses(Id<AddressGroup>),
}

impl IdKind for SecurityGroupRule {}

pub const BY_GROUP: Index<SecurityGroupRule> = Index::many("group", |r, keys| keys.push(r.group.key()));
pub const BY_REMOTE: Index<SecurityGroupRule> = Index::many("remote", |r, keys| {
    if let Remote::Group(id) = r.remote {
        keys.push(id.key());
    }
});

pub const BY_ADDRESS_GROUP: Index<SecurityGroupRule> = Index::many("address_group", |r, keys| {
    if let Remote::Addresses(id) = r.remote {
        keys.push(id.key());
    }
});

impl Record for SecurityGroupRule {
    const KIND: &'static str = "security_group_rule";
    type Key = Id<SecurityGroupRule>;
    const INDEXES: &'static [Index<SecurityGroupRule>] = &[BY_GROUP, BY_REMOTE, BY_ADDRESS_GROUP];

    fn key(&self) -> Id<SecurityGroupRule> {
        self.id
    }

    fn amounts(&self, add: &mut dyn FnMut(ProjectId, &'static str, i64)) {
        add(self.meta.project, SECURITY_GROUP_RULE.name, 1);
    }
}

/// The name of the group that a project has from first sight.
pub const DEFAULT: &str = "default";

/// The project's default group; made now if it is not there.
pub fn default(tx: &mut Tx, project: ProjectId) -> Result<Id<SecurityGroup>> {
    if let Some(group) = find_default(tx, project) {
        return Ok(group);
    }
    let mut meta = Meta::new(tx, project);
    meta.name = DEFAULT.into();
    meta.description = "Default security group".into();
    Ok(make(tx, meta, true)?.id)
}

pub fn find_default(state: &State, project: ProjectId) -> Option<Id<SecurityGroup>> {
    state.one(&BY_NAME, (project, DEFAULT)).map(|g| g.id)
}

fn exists() -> Error {
    Error::conflict("Default security group already exists.").named("SecurityGroupDefaultAlreadyExists")
}

/// A group with the rules that new ones start with.
fn make(tx: &mut Tx, meta: Meta, stateful: bool) -> Result<Arc<SecurityGroup>> {
    let is_default = meta.name == DEFAULT;
    let group = SecurityGroup { id: tx.new_id(), meta, stateful };
    let group = tx.put(group)?;
    default_rule::fill(tx, &group, is_default)?;
    Ok(group)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    stateful: Option<Flag>,
}

impl Resource for SecurityGroup {
    const ONE: &'static str = "security_group";
    const MANY: &'static str = "security_groups";
    const TITLE: &'static str = "Security group";
    const NOT_FOUND: &'static str = "SecurityGroupNotFound";
    const ATTRIBUTES: &'static [&'static str] = &["security_group_rules", "stateful", "shared", "is_default"];
    type Body = Body;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn visible(&self, state: &State, cx: &Context) -> bool {
        cx.sees(self.meta.project) || rbac::shared(state, self.id, cx)
    }

    fn view(&self, state: &State, cx: &Context, view: &mut View) {
        self.meta.view(self.id, view);
        let rules = state.by(&BY_GROUP, self.id);
        view.objects("security_group_rules", rules, |rule, view| rule.view(state, cx, view));
        view.put("stateful", &self.stateful);
        view.put("shared", &rbac::shared(state, self.id, cx));
    }

    fn create(
        tx: &mut Tx,
        _: &Context,
        project: ProjectId,
        body: &Wanted<SecurityGroup>,
    ) -> Result<Arc<SecurityGroup>> {
        limit::claim(tx, project, &SECURITY_GROUP, 1)?;
        default(tx, project)?;
        let name = body.meta.name.clone().unwrap_or_default().0;
        if name == DEFAULT {
            return Err(exists());
        }
        let mut meta = Meta::new(tx, project);
        meta.apply(&body.meta);
        make(tx, meta, body.stateful.is_none_or(|f| f.0))
    }

    fn update(
        tx: &mut Tx,
        _: &Context,
        old: &SecurityGroup,
        body: &Wanted<SecurityGroup>,
    ) -> Result<Arc<SecurityGroup>> {
        let renamed = body.meta.name.as_ref().is_some_and(|n| n.0 != old.meta.name);
        if old.meta.name == DEFAULT && renamed {
            return Err(Error::conflict("Updating default security group not allowed.")
                .named("SecurityGroupCannotUpdateDefault"));
        }
        if renamed && body.meta.name.as_ref().is_some_and(|n| n.0 == DEFAULT) {
            return Err(exists());
        }
        let mut group = old.clone();
        group.meta.apply(&body.meta);
        group.stateful = body.stateful.map_or(group.stateful, |f| f.0);
        group.meta.touch(tx);
        Ok(tx.put(group)?)
    }

    fn delete(tx: &mut Tx, cx: &Context, old: &SecurityGroup) -> Result<()> {
        if tx.by(&port::BY_GROUP, old.id).next().is_some() {
            return Err(
                Error::conflict(format!("Security Group {} in use.", old.id)).named("SecurityGroupInUse")
            );
        }
        if old.meta.name == DEFAULT && !cx.everywhere {
            return Err(Error::conflict(format!(
                "Insufficient rights for removing default security group {}.",
                old.id
            ))
            .named("SecurityGroupCannotRemoveDefault"));
        }
        let rules: Vec<_> = tx.by(&BY_GROUP, old.id).chain(tx.by(&BY_REMOTE, old.id)).map(|r| r.id).collect();
        for rule in rules {
            tx.delete::<SecurityGroupRule>(&rule);
        }
        rbac::forget(tx, old.id);
        tx.delete::<SecurityGroup>(&old.id);
        Ok(())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleBody {
    security_group_id: Option<Id<SecurityGroup>>,
    direction: Option<Direction>,
    ethertype: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    protocol: Option<Option<Value>>,
    #[serde(default, deserialize_with = "nullable")]
    port_range_min: Option<Option<crate::attr::Whole>>,
    #[serde(default, deserialize_with = "nullable")]
    port_range_max: Option<Option<crate::attr::Whole>>,
    #[serde(default, deserialize_with = "nullable")]
    remote_ip_prefix: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    remote_group_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable")]
    remote_address_group_id: Option<Option<String>>,
}

impl Resource for SecurityGroupRule {
    const ONE: &'static str = "security_group_rule";
    const MANY: &'static str = "security_group_rules";
    const TITLE: &'static str = "Security group rule";
    const NOT_FOUND: &'static str = "SecurityGroupRuleNotFound";
    const NAMED: bool = false;
    const ATTRIBUTES: &'static [&'static str] = &[
        "security_group_id",
        "direction",
        "ethertype",
        "protocol",
        "port_range_min",
        "port_range_max",
        "remote_ip_prefix",
        "remote_group_id",
        "remote_address_group_id",
        "normalized_cidr",
        "belongs_to_default_sg",
    ];
    type Body = RuleBody;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn view(&self, state: &State, _: &Context, view: &mut View) {
        self.meta.unnamed(self.id, view);
        let (cidr, group, addresses) = match &self.remote {
            Remote::Any => (None, None, None),
            Remote::Cidr(cidr) => (Some(*cidr), None, None),
            Remote::Group(group) => (None, Some(*group), None),
            Remote::Addresses(group) => (None, None, Some(*group)),
        };
        view.put("security_group_id", &self.group);
        view.put("direction", &self.direction);
        view.put("ethertype", &if self.v6 { "IPv6" } else { "IPv4" });
        view.put("protocol", &self.protocol);
        view.put("port_range_min", &self.min);
        view.put("port_range_max", &self.max);
        view.put("remote_ip_prefix", &cidr);
        view.put("remote_group_id", &group);
        view.put("remote_address_group_id", &addresses);
        view.put("normalized_cidr", &cidr.map(|c| c.trunc()));
        view.put(
            "belongs_to_default_sg",
            &state.get::<SecurityGroup>(&self.group).is_some_and(|g| g.meta.name == DEFAULT),
        );
    }

    fn having<'a>(state: &'a State, attribute: &str, value: &str) -> Option<Vec<&'a Arc<SecurityGroupRule>>> {
        let of = |id: Id<SecurityGroup>| state.by(&BY_GROUP, id).collect();
        (attribute == "security_group_id").then(|| value.parse().map_or_else(|_| Vec::new(), of))
    }

    fn shows(&self, attribute: &str, value: &str) -> Option<bool> {
        (attribute == "security_group_id").then(|| self.group.to_string() == value)
    }

    fn create(
        tx: &mut Tx,
        cx: &Context,
        project: ProjectId,
        body: &Wanted<SecurityGroupRule>,
    ) -> Result<Arc<SecurityGroupRule>> {
        let group = body.security_group_id.ok_or_else(|| missing("security_group_id"))?;
        let group = resource::own::<SecurityGroup>(tx, cx, group)?;
        limit::claim(tx, project, &SECURITY_GROUP_RULE, 1)?;
        let rule = parse_rule(tx, cx, group.id, project, body)?;
        if let Some(same) = tx.by(&BY_GROUP, group.id).find(|r| same_rule(r, &rule)) {
            return Err(Error::conflict(format!(
                "Security group rule already exists. Rule id is {}.",
                same.id
            ))
            .named("SecurityGroupRuleExists"));
        }
        Ok(tx.put(rule)?)
    }

    fn update(
        tx: &mut Tx,
        _: &Context,
        old: &SecurityGroupRule,
        body: &Wanted<SecurityGroupRule>,
    ) -> Result<Arc<SecurityGroupRule>> {
        let mut rule = old.clone();
        rule.meta.apply(&body.meta);
        rule.meta.touch(tx);
        Ok(tx.put(rule)?)
    }

    fn delete(tx: &mut Tx, _: &Context, old: &SecurityGroupRule) -> Result<()> {
        tx.delete::<SecurityGroupRule>(&old.id);
        Ok(())
    }
}

/// Without the host bits that its owner may have written.
fn normal(remote: &Remote) -> Remote {
    match remote {
        Remote::Cidr(net) => Remote::Cidr(net.trunc()),
        Remote::Any | Remote::Group(_) | Remote::Addresses(_) => remote.clone(),
    }
}

/// Whether two rules allow the same.
pub fn same_rule(a: &SecurityGroupRule, b: &SecurityGroupRule) -> bool {
    let number = |r: &SecurityGroupRule| r.protocol.as_deref().and_then(|p| protocol_number(p, r.v6));
    (a.direction, a.v6, number(a), a.min, a.max) == (b.direction, b.v6, number(b), b.min, b.max)
        && normal(&a.remote) == normal(&b.remote)
}

/// The rule that a body describes, of `group`.
pub fn parse_rule(
    tx: &mut Tx,
    cx: &Context,
    group: Id<SecurityGroup>,
    project: ProjectId,
    body: &Wanted<SecurityGroupRule>,
) -> Result<SecurityGroupRule> {
    let v6 = match body.ethertype.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("ipv4") => false,
        Some("ipv6") => true,
        Some(other) => {
            return Err(Error::invalid(format!(
                "Security group rule for ethertype '{}' not supported. Allowed values are ['IPv4', 'IPv6'].",
                other.escape_default()
            ))
            .named("SecurityGroupRuleInvalidEtherType"));
        }
    };
    let protocol = protocol(body, v6)?;
    let number = protocol.as_deref().and_then(|p| protocol_number(p, v6));
    let (min, max) = range(body, number)?;
    let mut meta = Meta::new(tx, project);
    meta.apply(&body.meta);
    Ok(SecurityGroupRule {
        id: tx.new_id(),
        meta,
        group,
        direction: body.direction.ok_or_else(|| missing("direction"))?,
        v6,
        protocol,
        min,
        max,
        remote: remote(tx, cx, body, v6)?,
    })
}

/// IP protocol names that Neutron knows. Source: neutron-lib `constants.IP_PROTOCOL_MAP`.
const PROTOCOLS: [(&str, u8); 22] = [
    ("ah", 51),
    ("dccp", 33),
    ("egp", 8),
    ("esp", 50),
    ("gre", 47),
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("ipv6-encap", 41),
    ("ipv6-frag", 44),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("ipv6-route", 43),
    ("ospf", 89),
    ("pgm", 113),
    ("rsvp", 46),
    ("sctp", 132),
    ("tcp", 6),
    ("udp", 17),
    ("udplite", 136),
];

/// The number of a protocol's name; `icmp` of an IPv6 rule is ICMPv6.
pub fn protocol_number(text: &str, v6: bool) -> Option<u8> {
    if v6 && matches!(text, "icmp" | "1") {
        return Some(58);
    }
    PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, n)| *n).or_else(|| text.parse().ok())
}

fn protocol(body: &RuleBody, v6: bool) -> Result<Option<String>> {
    let text = match body.protocol.clone().flatten() {
        None => return Ok(None),
        Some(Value::String(text)) => text.to_ascii_lowercase(),
        Some(other) => other.to_string(),
    };
    match (text.as_str(), protocol_number(&text, v6)) {
        ("any" | "", _) => Ok(None),
        (_, Some(_)) => Ok(Some(text)),
        (_, None) => Err(Error::invalid(format!(
            "Security group rule protocol {} not supported. Only protocol values [names or 0 to 255] are supported.",
            text.escape_default()
        ))
        .named("SecurityGroupRuleInvalidProtocol")),
    }
}

fn range(body: &RuleBody, protocol: Option<u8>) -> Result<(Option<u16>, Option<u16>)> {
    let (min, max) = (body.port_range_min.flatten().map(|n| n.0), body.port_range_max.flatten().map(|n| n.0));
    if min.is_none() && max.is_none() {
        return Ok((None, None));
    }
    if let Some(port) = [min, max].into_iter().flatten().find(|n| !(0..=65535).contains(n)) {
        return Err(
            Error::invalid(format!("Invalid value for port {port}.")).named("SecurityGroupInvalidPortValue")
        );
    }
    let bad = |why: &str| Err(Error::invalid(why.to_string()).named("SecurityGroupInvalidPortRange"));
    match protocol {
        Some(1 | 58) => {
            for (what, field, value) in [("type", "port_range_min", min), ("code", "port_range_max", max)] {
                if let Some(value) = value.filter(|n| *n > 255) {
                    let text =
                        format!("Invalid value for ICMP {what} ({field}) {value}. It must be 0 to 255.");
                    return Err(Error::invalid(text).named("SecurityGroupInvalidIcmpValue"));
                }
            }
            if min.is_none() {
                let text =
                    "ICMP code (port-range-max) is provided but ICMP type (port-range-min) is missing.";
                return Err(Error::invalid(text).named("SecurityGroupMissingIcmpType"));
            }
        }
        Some(6 | 17 | 33 | 132 | 136) => match (min, max) {
            (Some(low), Some(high)) if low <= high => {}
            _ => return bad("For TCP/UDP protocols, port_range_min must be <= port_range_max"),
        },
        Some(_) => return bad("Port ranges are of TCP, UDP, DCCP, SCTP and UDP-Lite only."),
        None => {
            return Err(Error::invalid("Must also specify protocol if port range is given.")
                .named("SecurityGroupProtocolRequiredWithPorts"));
        }
    }
    let narrow = |n: i64| n as u16;
    Ok((min.map(narrow), max.map(narrow)))
}

fn remote(tx: &Tx, cx: &Context, body: &RuleBody, v6: bool) -> Result<Remote> {
    let cidr = body.remote_ip_prefix.clone().flatten().filter(|text| !text.is_empty());
    let addresses = body.remote_address_group_id.clone().flatten();
    match (cidr, body.remote_group_id.clone().flatten(), addresses) {
        (None, None, None) => Ok(Remote::Any),
        (None, None, Some(group)) => {
            let id = group.parse().map_err(|_| resource::not_found::<AddressGroup>(&group))?;
            Ok(Remote::Addresses(resource::get::<AddressGroup>(tx, cx, id)?.id))
        }
        (Some(_), Some(_), None) => {
            Err(Error::invalid("Only remote_ip_prefix or remote_group_id may be provided.")
                .named("SecurityGroupRemoteGroupAndRemoteIpPrefix"))
        }
        (_, _, Some(_)) => {
            let text =
                "Only one of remote_ip_prefix, remote_group_id and remote_address_group_id may be provided.";
            Err(Error::invalid(text).named("SecurityGroupMultipleRemoteEntites"))
        }
        (None, Some(group), None) => {
            // An id that is none is one that is not there, as Neutron says.
            let id = group.parse().map_err(|_| resource::not_found::<SecurityGroup>(&group))?;
            Ok(Remote::Group(resource::get::<SecurityGroup>(tx, cx, id)?.id))
        }
        (Some(text), None, None) => {
            let net: Option<IpNet> =
                text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            let net = net.ok_or_else(|| {
                Error::invalid(format!(
                    "Invalid input for remote_ip_prefix. Reason: '{}' is not a valid IP subnet.",
                    text.escape_default()
                ))
            })?;
            match net.addr().is_ipv6() == v6 {
                true => Ok(Remote::Cidr(net)),
                false => Err(Error::invalid("Conflicting value ethertype for CIDR.")
                    .named("SecurityGroupRuleParameterConflict")),
            }
        }
    }
}

/// What the groups of a port allow together, as its node needs it. None: the port has no group.
pub fn rule_set(state: &State, port: &Port) -> Option<node::RuleSet> {
    if !port.port_security {
        return None;
    }
    let rules: BTreeSet<node::Rule> =
        port.groups.iter().flat_map(|g| state.by(&BY_GROUP, *g)).flat_map(|r| node_rules(state, r)).collect();
    let stateful = port.groups.iter().all(|g| state.get::<SecurityGroup>(g).is_none_or(|g| g.stateful));
    Some(node::RuleSet { rules: rules.into_iter().collect(), stateful })
}

/// One rule for the node; for an address group one for each of its addresses.
fn node_rules(state: &State, rule: &SecurityGroupRule) -> Vec<node::Rule> {
    let one = |remote| node::Rule {
        direction: rule.direction,
        v6: rule.v6,
        protocol: rule.protocol.as_deref().and_then(|p| protocol_number(p, rule.v6)),
        min: rule.min,
        max: rule.max,
        remote,
    };
    match rule.remote {
        Remote::Any => vec![one(node::Remote::Any)],
        Remote::Cidr(net) => vec![one(node::Remote::Cidr(net.trunc()))],
        Remote::Group(id) => vec![one(node::Remote::Group(id.uuid()))],
        Remote::Addresses(id) => {
            let all = state.get::<AddressGroup>(&id).into_iter().flat_map(|g| &g.addresses);
            all.filter(|a| a.addr().is_ipv6() == rule.v6).map(|a| one(node::Remote::Cidr(*a))).collect()
        }
    }
}
