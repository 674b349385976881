//! What a guest is told of the maintenance of its node: a list of at most one event, in two shapes.
//!
//! Source of EC2's: "Scheduled events for your instances", `events/maintenance/scheduled`.

use crate::vm::plan::Guest;
use base::Timestamp;
use base::node::Maintenance;
use serde_json::{Value, json};

/// What becomes of the guest at the deadline, in EC2's words.
const CODE: &str = "instance-stop";
/// Digits of an event's id in EC2's shape.
const EC2_DIGITS: usize = 17;

/// `maintenance.json`
pub fn openstack(guest: &Guest) -> Value {
    list(guest, |m| {
        let state = if m.started { "started" } else { "scheduled" };
        let mut event = json!({
            "id": m.event, "state": state, "code": CODE, "description": m.reason, "not_before": m.not_before.zulu(),
        });
        if let Some(until) = m.not_after {
            event["not_after"] = json!(until.zulu());
        }
        event
    })
}

/// `events/maintenance/scheduled`: what goes on is listed, too, as EC2 does until it is over.
pub fn ec2(guest: &Guest) -> Value {
    list(guest, |m| {
        let id = m.event.simple().to_string();
        let mut event = json!({
            "EventId": format!("instance-event-{}", &id[..EC2_DIGITS]), "State": "active", "Code": CODE,
            "Description": m.reason, "NotBefore": time(m.not_before),
        });
        if let Some(until) = m.not_after {
            event["NotAfter"] = json!(time(until));
        }
        event
    })
}

fn list(guest: &Guest, one: impl Fn(&Maintenance) -> Value) -> Value {
    Value::Array(guest.vm.maintenance.iter().map(one).collect())
}

/// `21 Jan 2019 09:00:43 GMT`: HTTP's without its weekday.
fn time(at: Timestamp) -> String {
    let http = at.http();
    http.split_once(", ").map_or(http.clone(), |(_, rest)| rest.into())
}
