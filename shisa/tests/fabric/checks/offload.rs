//! Flows that a flowtable carries, where the kernel has one: `SHISA_FABRIC_MUST=flowtable` where it has to.

use super::ensure;
use super::groups::{flow, guarded, talks, tcp};
use crate::Outcome;
use crate::guest::Guest;
use crate::hosts::until;
use crate::space::Space;
use crate::town::{SOON, Town, rule};
use serde_json::json;
use std::net::{IpAddr, TcpStream};

/// It takes one packet at the wrong moment for one to go on.
const FLOWS: usize = 4;

/// Flows from the world to a floating address, all talking.
fn flows(town: &Town, to: IpAddr) -> Outcome<Vec<TcpStream>> {
    until(SOON, || {
        let mut flows = (0..FLOWS).map(|_| flow(&town.machines.world, to)).collect::<Outcome<Vec<_>>>()?;
        // The first packets of a flow are not carried yet.
        let talk = (0..3).all(|_| flows.iter_mut().all(talks));
        ensure(talk, "the flows do not talk")?;
        Ok(flows)
    })
}

/// How many of the flows a router's flowtable carries; none where there is no flowtable.
fn offloaded(router: &Space, flows: &[TcpStream]) -> Outcome<Option<usize>> {
    let must = std::env::var("SHISA_FABRIC_MUST").is_ok_and(|must| must == "flowtable");
    match router.run("nft list flowtables") {
        Ok(list) if list.contains("flows") => {
            let known = router.inside(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
            let known = known.map_err(|e| format!("no list of connections: {e}"))?;
            let carried: Vec<&str> = known.lines().filter(|line| line.contains("[OFFLOAD]")).collect();
            let port = |flow: &TcpStream| flow.local_addr().map(|own| format!("sport={} ", own.port()));
            let is = |port: String| carried.iter().any(|line| line.contains(&port));
            Ok(Some(flows.iter().filter_map(|flow| port(flow).ok()).filter(|port| is(port.clone())).count()))
        }
        list if must => Err(format!("there is no flowtable: {list:?}")),
        _ => Ok(None),
    }
}

fn ended(flows: &mut [TcpStream]) -> Outcome<()> {
    until(SOON, || {
        let going = flows.iter_mut().map(talks).filter(|talks| *talks).count();
        ensure(going == 0, format!("{going} of {FLOWS} flows go on")).map(drop)
    })
}

pub fn established(town: &mut Town) -> Outcome {
    guarded(town, "carried", |town, guest, group| {
        let (id, floating) = town.float(guest)?;
        let outcome = carried(town, guest, group, &id, &floating);
        let _ = town.unfloat(&id);
        outcome
    })
}

fn carried(town: &mut Town, guest: &Guest, group: &str, id: &str, floating: &str) -> Outcome {
    let to: IpAddr = floating.parse().map_err(|_| format!("'{floating}' is no address"))?;
    let router = town.router_place(guest.host)?;
    let carry = |town: &Town| -> Outcome<(Vec<TcpStream>, Option<usize>)> {
        let flows = flows(town, to)?;
        let carried = until(SOON, || match offloaded(&router, &flows)? {
            Some(n) if n < FLOWS => Err(format!("{n} of {FLOWS} flows are carried")),
            known => Ok(known),
        })?;
        Ok((flows, carried))
    };
    let allowed = rule(&town.api, group, tcp(json!({})))?;
    let (mut before, carried) = carry(town)?;
    town.api.delete(&format!("/v2.0/security-group-rules/{allowed}"))?;
    ended(&mut before).map_err(|not| format!("with the rule removed {not}"))?;
    rule(&town.api, group, tcp(json!({})))?;
    let (mut before, again) = carry(town)?;
    town.unfloat(id)?;
    ended(&mut before).map_err(|not| format!("with the floating address removed {not}"))?;
    let how = match carried.zip(again) {
        Some((one, two)) => format!("{one} and {two} flows carried by the flowtable"),
        None => "this kernel has no flowtable; flows through all rules".to_string(),
    };
    Ok(format!("{how} ended with the rule, and with the address"))
}
