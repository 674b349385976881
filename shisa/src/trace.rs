//! `shisa network trace`: which way a packet of a port would take, hop by hop, and the rule that stops it.

use crate::cli::Trace;
use crate::http::{Client, text};
use crate::image;
use crate::progress::say;
use crate::state::Directory;
use base::{Error, Result};
use serde_json::Value;
use std::process::ExitCode;

/// A packet that does not arrive.
const STOPPED: u8 = 4;

pub async fn run(directory: &Directory, args: &Trace) -> Result<ExitCode> {
    directory.running().ok_or_else(|| {
        Error::unavailable(format!(
            "the cloud of {} is not up: shisa up starts it",
            directory.path().display()
        ))
    })?;
    let admin = image::admin(directory).await?;
    let from = port(&admin, &args.from).await?;
    let mut path = format!("/network/v2.0/ports/{from}/trace?to={}&protocol={}", args.to, args.protocol);
    if let Some(port) = args.port {
        path += &format!("&port={port}");
    }
    let trace = &admin.get(&path).await?["trace"];
    for hop in trace["hops"].as_array().into_iter().flatten() {
        let id = hop["id"].as_str().unwrap_or_default();
        say(format_args!("{}  {} {id}  {}", text(&hop["host"]), text(&hop["kind"]), text(&hop["what"])));
    }
    say(text(&trace["detail"]));
    let arrives = matches!(trace["result"].as_str(), Some("delivered" | "answered" | "left"));
    Ok(if arrives { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
}

/// The id of the one port with this id, name or fixed address.
async fn port(admin: &Client, what: &str) -> Result<String> {
    let plain = what.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    if !plain {
        return Err(Error::invalid(format!("'{what}' is no id, name or address of a port")));
    }
    for filter in ["id", "name", "fixed_ips=ip_address"] {
        let path = format!("/network/v2.0/ports?{filter}={}", what.replace(':', "%3A"));
        let ports = &admin.get(&path).await?["ports"];
        match ports.as_array().map(Vec::as_slice) {
            Some([one]) => return Ok(text(&one["id"])),
            Some([]) | None => {}
            Some(several) => {
                let ids: Vec<&Value> = several.iter().map(|port| &port["id"]).collect();
                return Err(Error::conflict(format!(
                    "{} ports are '{what}': name one by its id, of {ids:?}",
                    ids.len()
                )));
            }
        }
    }
    Err(Error::not_found(format!("no port has the id, name or address '{what}'")))
}
