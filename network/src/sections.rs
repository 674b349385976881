//! The sections of a node's document that network records make. Pure: what a key holds depends on the state alone.

use crate::address_group::{self, AddressGroup};
use crate::floating_ip::{self, FloatingIp};
use crate::network::Network;
use crate::port::{self, Port};
use crate::port_forwarding::{self, PortForwarding};
use crate::rbac::RbacPolicy;
use crate::reach;
use crate::router::{self, Router};
use crate::security_group::{self, SecurityGroup, SecurityGroupRule};
use crate::subnet::{self, Subnet};
use base::Id;
use base::node::{self, Elements, Section, SectionKey};
use fleet::{Node, Source, Touched};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use store::{Entry, State};

/// The keys that a node needs for the ports bound to it.
fn keys_of_node(state: &State, host: &str) -> BTreeSet<SectionKey> {
    let mut keys = BTreeSet::new();
    let mut networks = BTreeSet::new();
    // Most ports have the same groups as others.
    let mut sets = HashSet::new();
    for port in state.by(&port::BY_HOST, host).filter(|p| p.owner.is_compute()) {
        keys.insert(SectionKey::Port(port.id.uuid()));
        networks.insert(port.network);
        if !port.port_security || !sets.insert(&port.groups) {
            continue;
        }
        let Some(rules) = security_group::rule_set(state, port) else { continue };
        for rule in &rules.rules {
            if let node::Remote::Group(group) = rule.remote {
                keys.insert(SectionKey::Group(group));
            }
        }
        keys.insert(SectionKey::Rules(rules.hash()));
    }
    let mut routers: BTreeSet<Id<Router>> =
        networks.iter().flat_map(|n| reach::distributed_of(state, *n)).collect();
    routers.extend(state.by(&router::BY_HOST, host).map(|r| r.id));
    for router in &reach::onward(state, routers) {
        keys.insert(SectionKey::Router(router.uuid()));
        networks.extend(router::interfaces(state, *router).map(|p| p.network));
        networks.extend(state.get::<Router>(router).and_then(|r| r.gateway.as_ref()).map(|g| g.network));
    }
    for network in networks {
        keys.insert(SectionKey::Network(network.uuid()));
        keys.insert(SectionKey::Members(network.uuid()));
    }
    keys
}

/// This service, as far as documents go.
pub const SOURCE: Source = Source { keys: keys_of_node, section, touched };

/// What a key holds now. None: it is not there, or not of this service.
fn section(state: &State, host: &str, key: &SectionKey) -> Option<Section> {
    match key {
        SectionKey::Port(id) => {
            state.get::<Port>(&Id::from_uuid(*id)).map(|p| Section::Port(port_section(state, p)))
        }
        SectionKey::Network(id) => {
            state.get::<Network>(&Id::from_uuid(*id)).map(|n| Section::Network(network_section(state, n)))
        }
        SectionKey::Members(id) => {
            state.get::<Network>(&Id::from_uuid(*id)).map(|n| Section::Members(members_section(state, n)))
        }
        SectionKey::Router(id) => {
            state.get::<Router>(&Id::from_uuid(*id)).map(|r| Section::Router(router_section(state, r)))
        }
        SectionKey::Group(id) => Some(Section::Group(group_section(state, Id::from_uuid(*id)))),
        SectionKey::Rules(hash) => rule_set_of(state, host, *hash).map(Section::Rules),
        SectionKey::Vm(_) | SectionKey::Image(_) => None,
    }
}

/// The rule set of this hash, from whichever port of the node has it.
fn rule_set_of(state: &State, host: &str, hash: u64) -> Option<node::RuleSet> {
    let ports = state.by(&port::BY_HOST, host).filter(|p| p.owner.is_compute());
    ports.filter_map(|p| security_group::rule_set(state, p)).find(|set| set.hash() == hash)
}

fn port_section(state: &State, port: &Port) -> node::Port {
    // The floating addresses of an address that its guest holds for a port without a node are its own, too.
    let held = port.claims.iter().filter_map(|a| port::with_address(state, port.network, *a));
    let held = held.filter(|p| p.host.is_empty()).map(|p| p.id);
    let ids = [port.id].into_iter().chain(held);
    let floating = ids.flat_map(|id| state.by(&floating_ip::BY_PORT, id)).filter_map(|f| {
        let at = f.association.as_ref()?;
        let (floating, fixed, router, network) = (f.address, at.fixed, at.router.uuid(), f.network.uuid());
        Some(node::FloatingIp { floating, fixed, router, network })
    });
    let options = port.dhcp_options.iter().map(|o| node::DhcpOption {
        name: o.name.clone(),
        value: o.value.clone(),
        v6: o.v6,
    });
    node::Port {
        id: port.id.uuid(),
        network: port.network.uuid(),
        vm: port.device.parse().ok().filter(|_| port.owner.is_compute()),
        mac: port.mac,
        admin_up: port.admin_up,
        fixed: port
            .fixed
            .iter()
            .map(|f| node::FixedIp { subnet: f.subnet.uuid(), address: f.address })
            .collect(),
        pairs: port.pairs.iter().map(|p| (p.net, p.mac.unwrap_or(port.mac))).collect(),
        port_security: port.port_security,
        name: port.dns_name.clone(),
        rules: security_group::rule_set(state, port).map(|set| set.hash()),
        floating: floating.collect(),
        dhcp_options: options.collect(),
    }
}

fn network_section(state: &State, network: &Network) -> node::Network {
    let subnets: Vec<&Arc<Subnet>> = state.by(&subnet::BY_NETWORK, network.id).collect();
    let home = (!network.is_external(state))
        .then(|| subnets.iter().find_map(|s| router::of_subnet(state, s)))
        .flatten();
    node::Network {
        id: network.id.uuid(),
        vni: network.vni,
        mtu: network.mtu,
        external: network.is_external(state),
        physical: network.physical.clone(),
        router: home.map(|r| r.uuid()),
        subnets: subnets.iter().map(|s| subnet_section(s)).collect(),
        dns_domain: network.dns_domain.clone(),
    }
}

fn members_section(state: &State, network: &Network) -> node::Members {
    let bound = state.by(&port::BY_MEMBERS, network.id);
    node::Members {
        network: network.id.uuid(),
        ports: bound.flat_map(|p| members(state, p)).chain(legs(state, network)).collect(),
    }
}

/// The legs of routers into an external network, one for each node that has one.
fn legs<'a>(state: &'a State, network: &Network) -> impl Iterator<Item = (uuid::Uuid, node::Member)> + 'a {
    state.by(&port::BY_LEGS, (network.id, true)).flat_map(|port| {
        let router = port.device.parse::<Id<Router>>().ok().and_then(|id| state.get::<Router>(&id));
        let gateway = router.and_then(|router| router.gateway.as_ref());
        gateway.into_iter().flat_map(|gateway| leg_of_each_node(state, gateway, port)).collect::<Vec<_>>()
    })
}

fn leg_of_each_node(
    state: &State,
    gateway: &router::Gateway,
    port: &Port,
) -> Vec<(uuid::Uuid, node::Member)> {
    let vtep = |name: &String| fleet::node::address(state, name);
    let (id, owner) = (port.id.uuid(), gateway.owner.as_ref().and_then(vtep));
    let leg = |vtep| {
        let mac = node::leg_mac(id, port.mac, owner, vtep);
        (
            node::leg_id(id, vtep),
            node::Member { mac, addresses: Vec::new(), vtep: Some(vtep), name: String::new() },
        )
    };
    gateway.blocks.keys().filter_map(vtep).map(leg).collect()
}

/// A port with its own MAC, and with each MAC of its pairs that it claims an address at.
fn members(state: &State, port: &Port) -> BTreeMap<uuid::Uuid, node::Member> {
    let vtep = fleet::node::address(state, &port.host);
    let claimed = port.claims.iter().copied().filter(|a| !port.claim_macs.contains_key(a));
    let addresses = port.fixed.iter().map(|f| f.address).chain(claimed).collect();
    let own = node::Member { mac: port.mac, addresses, vtep, name: port.dns_name.clone() };
    let mut out = BTreeMap::from([(port.id.uuid(), own)]);
    for (address, mac) in &port.claim_macs {
        let none = || node::Member { mac: *mac, addresses: Vec::new(), vtep, name: String::new() };
        out.entry(node::claim_id(port.id.uuid(), *mac)).or_insert_with(none).addresses.push(*address);
    }
    out
}

fn subnet_section(subnet: &Subnet) -> node::Subnet {
    node::Subnet {
        id: subnet.id.uuid(),
        cidr: subnet.cidr,
        gateway: subnet.gateway,
        dhcp: subnet.dhcp,
        dns: subnet.dns.clone(),
        routes: subnet.routes.iter().map(|r| (r.destination, r.nexthop)).collect(),
        ipv6_ra: subnet.ra,
        ipv6_address: subnet.address_mode,
    }
}

fn with_prefix(state: &State, port: &Port) -> Vec<IpNet> {
    let net = |f: &port::Fixed| {
        let length = state.get::<Subnet>(&f.subnet)?.cidr.prefix_len();
        IpNet::new(f.address, length).ok()
    };
    port.fixed.iter().filter_map(net).collect()
}

fn router_section(state: &State, router: &Router) -> node::Router {
    let interfaces = router::interfaces(state, router.id).map(|p| node::RouterInterface {
        port: p.id.uuid(),
        network: p.network.uuid(),
        mac: p.mac,
        addresses: with_prefix(state, p),
    });
    let gateway = router.gateway.as_ref().and_then(|g| {
        let port = state.get::<Port>(&g.port)?;
        Some(node::RouterGateway {
            port: port.id.uuid(),
            network: g.network.uuid(),
            mac: port.mac,
            addresses: with_prefix(state, port),
            next_hops: router::next_hops(state, g.network),
            snat: g.snat,
            owner: g.owner.as_deref().and_then(|name| fleet::node::address(state, name)),
            shares: shares(state, g, port),
        })
    });
    node::Router {
        id: router.id.uuid(),
        admin_up: router.admin_up,
        interfaces: interfaces.collect(),
        gateway,
        routes: router.routes.iter().map(|r| (r.destination, r.nexthop)).collect(),
        central: !router.distributed,
        forwards: state.by(&port_forwarding::BY_ROUTER, router.id).flat_map(|f| forwards(state, f)).collect(),
    }
}

/// Many ports that lead to one are as many forwards of one port.
fn forwards(state: &State, forwarding: &PortForwarding) -> Vec<node::PortForward> {
    let (Some(floating), Some(port)) =
        (state.get::<FloatingIp>(&forwarding.floating), state.get::<Port>(&forwarding.port))
    else {
        return Vec::new();
    };
    let one = |ports, fixed_ports| node::PortForward {
        floating: floating.address,
        protocol: forwarding.protocol.number(),
        ports,
        fixed: forwarding.fixed,
        fixed_ports,
        vtep: fleet::node::address(state, &port.host),
    };
    let (outer, inner) = (forwarding.outer, forwarding.inner);
    match outer.1 - outer.0 == inner.1 - inner.0 {
        true => vec![one(outer, inner)],
        false => (outer.0..=outer.1).map(|n| one((n, n), inner)).collect(),
    }
}

/// The blocks of the first IPv4 address of a gateway.
fn shares(state: &State, gateway: &router::Gateway, port: &Port) -> Vec<node::SnatShare> {
    let first = port.fixed.iter().map(|f| f.address).find(IpAddr::is_ipv4);
    let share = |(name, block): (&String, &u16)| {
        let (vtep, address) = (fleet::node::address(state, name)?, first?);
        Some(node::SnatShare { vtep, address, ports: node::SnatShare::block(*block) })
    };
    gateway.blocks.iter().filter_map(share).collect()
}

fn group_section(state: &State, group: Id<SecurityGroup>) -> node::Group {
    let members = state.by(&port::BY_GROUP, group);
    node::Group { id: group.uuid(), members: members.flat_map(|p| p.group_addresses()).collect() }
}

/// `before` and `after` are what an entry made of one port.
fn touch_port(state: &State, touched: &mut Touched, before: Option<&Port>, after: Option<&Port>) {
    before.into_iter().chain(after).for_each(|port| touch_own(state, touched, port));
    let ports = || before.into_iter().chain(after);
    for network in ports().map(|p| p.network).collect::<BTreeSet<_>>() {
        let of = |port: Option<&Port>| {
            let port = port.filter(|p| p.network == network && p.is_member());
            port.map(|p| members(state, p)).unwrap_or_default()
        };
        let (was, come) = (of(before), of(after));
        let gone = was.into_keys().filter(|id| !come.contains_key(id)).collect();
        touched.elements(SectionKey::Members(network.uuid()), Elements::Members { come, gone });
        if ports().any(|p| p.owner.is_router()) {
            touched.key(SectionKey::Members(network.uuid()));
        }
    }
    for group in ports().flat_map(|p| p.groups.iter().copied()).collect::<BTreeSet<_>>() {
        let of = |port: Option<&Port>| -> BTreeSet<IpAddr> {
            port.filter(|p| p.groups.contains(&group)).into_iter().flat_map(Port::group_addresses).collect()
        };
        let come = of(after);
        // Another port of the group may have the same address.
        let held = |address: &IpAddr| state.by(&port::BY_GROUP_ADDRESS, (group, *address)).next().is_some();
        let gone = of(before).into_iter().filter(|a| !come.contains(a) && !held(a)).collect();
        touched.elements(SectionKey::Group(group.uuid()), Elements::Group { come, gone });
    }
}

/// What is the port's own, and what routers and nodes have of it.
fn touch_own(state: &State, touched: &mut Touched, port: &Port) {
    touched.key(SectionKey::Port(port.id.uuid()));
    let routers = state.by(&port_forwarding::BY_PORT, port.id).map(|f| f.router);
    routers.for_each(|r| touched.key(SectionKey::Router(r.uuid())));
    if !port.host.is_empty() {
        touched.hosts.insert(port.host.clone());
    }
    if port.owner.is_router() {
        touched.holders(SectionKey::Network(port.network.uuid()));
        if let Ok(router) = port.device.parse::<Id<Router>>() {
            touched.holders(SectionKey::Router(router.uuid()));
        }
    }
}

/// Names what an entry touches, from its before- and after-images and the state after it.
fn touched(state: &State, entry: &Entry) -> Touched {
    let mut touched = Touched::default();
    for change in &entry.changes {
        if let Some((before, after)) = change.of::<Port>() {
            let reported = before.zip(after).is_some_and(|(b, a)| Port { up: a.up, ..b.clone() } == *a);
            if !reported {
                touch_port(state, &mut touched, before, after);
            }
        } else if let Some((before, after)) = change.of::<Network>() {
            before.into_iter().chain(after).for_each(|n| touched.key(SectionKey::Network(n.id.uuid())));
        } else if let Some((before, after)) = change.of::<Subnet>() {
            for subnet in before.into_iter().chain(after) {
                touched.holders(SectionKey::Network(subnet.network.uuid()));
                reach::routers_of(state, subnet.network)
                    .iter()
                    .for_each(|r| touched.key(SectionKey::Router(r.uuid())));
            }
        } else if let Some((before, after)) = change.of::<Router>() {
            for router in before.into_iter().chain(after) {
                touched.holders(SectionKey::Router(router.id.uuid()));
                touched.hosts.extend(router.host.clone());
                let outside = router.gateway.as_ref().map(|gateway| gateway.network);
                outside.into_iter().for_each(|n| touched.key(SectionKey::Members(n.uuid())));
                // What a network's holders need depends on which routers are distributed.
                let networks = router::interfaces(state, router.id).map(|p| p.network);
                networks.for_each(|n| touched.holders(SectionKey::Network(n.uuid())));
            }
        } else if let Some((before, after)) = change.of::<FloatingIp>() {
            let at = before.into_iter().chain(after).filter_map(|f| f.association.as_ref());
            for at in at {
                touched.key(SectionKey::Port(at.port.uuid()));
                let network = state.get::<Port>(&at.port).map(|p| p.network);
                let holders = network.into_iter().flat_map(|n| state.by(&port::BY_CLAIM, (n, at.fixed)));
                holders.for_each(|p| touched.key(SectionKey::Port(p.id.uuid())));
            }
        } else if let Some((before, after)) = change.of::<PortForwarding>() {
            let routers = before.into_iter().chain(after).map(|f| f.router);
            routers.for_each(|r| touched.key(SectionKey::Router(r.uuid())));
        } else if let Some((before, after)) = change.of::<RbacPolicy>() {
            // A network is external by its policies.
            let objects = before.into_iter().chain(after).map(|p| p.object.uuid());
            objects.for_each(|n| touched.key(SectionKey::Network(n)));
        } else if let Some((_, Some(after))) = change.of::<AddressGroup>() {
            for rule in address_group::rules_with(state, after.id) {
                state.by(&port::BY_GROUP, rule.group).for_each(|p| touch_own(state, &mut touched, p));
            }
        } else if let Some((Some(before), Some(after))) = change.of::<Node>()
            && before.hello.address != after.hello.address
        {
            touch_node(state, &mut touched, &after.hello.name);
        } else if let Some((before, after)) = change.of::<SecurityGroupRule>() {
            for rule in before.into_iter().chain(after) {
                state.by(&port::BY_GROUP, rule.group).for_each(|p| touch_own(state, &mut touched, p));
            }
        } else if let Some((Some(before), Some(after))) = change.of::<SecurityGroup>()
            && before.stateful != after.stateful
        {
            state.by(&port::BY_GROUP, after.id).for_each(|p| touch_own(state, &mut touched, p));
        }
    }
    touched
}

/// Whatever names a node does so by its address.
fn touch_node(state: &State, touched: &mut Touched, name: &str) {
    for port in state.by(&port::BY_HOST, name) {
        touch_own(state, touched, port);
        touched.key(SectionKey::Members(port.network.uuid()));
    }
    let names = |r: &&Arc<Router>| {
        let gateway = r.gateway.as_ref().is_some_and(|g| g.blocks.contains_key(name));
        gateway || r.host.as_deref() == Some(name)
    };
    state.all::<Router>().filter(names).for_each(|r| touched.key(SectionKey::Router(r.id.uuid())));
}

/// Takes what a node saw of its ports.
pub fn observed(tx: &mut store::Tx, node: &str, report: &node::Report) -> base::Result<()> {
    for (id, seen) in &report.ports {
        let id = Id::from_uuid(*id);
        if tx.get::<Port>(&id).is_some_and(|p| p.host == node) {
            port::observed(tx, id, seen)?;
        }
    }
    Ok(())
}
