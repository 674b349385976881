//! Lists of servers: filters, order, pages.

use super::rest::bad;
use super::view::{self, Shown};
use super::{BY_PROJECT, Server, life};
use crate::App;
use crate::text::next_link;
use api::page::Page;
use api::{Call, Reply, View};
use base::{ProjectId, Result, Timestamp};
use http::StatusCode;
use std::cmp::Ordering;
use std::sync::Arc;
use store::State;

pub async fn brief(app: App, call: Call) -> Result<Reply> {
    answer(&app, &call, |call, _, server, view| view::brief(call, server, view))
}

pub async fn detail(app: App, call: Call) -> Result<Reply> {
    answer(&app, &call, |call, state, server, view| view::full(call, state, server, Shown::InList, view))
}

fn answer(app: &App, call: &Call, show: fn(&Call, &State, &Server, &mut View)) -> Result<Reply> {
    let state = app.cell.read();
    let mut found = of_projects(call, &state)?;
    let times = Times::parse(call)?;
    found.retain(|s| {
        times.pass(s) && call.query.0.iter().all(|(name, value)| passes(call, &state, s, name, value))
    });
    let page = Page::of(&call.query)?;
    if page.marker.is_none() && call.query.get("sort_key").is_none() {
        leave_first(&mut found, page.limit + 1, newest_first);
    }
    sort(call, &mut found)?;
    let (page, more) = page.cut(found, |s| s.id.to_string())?;
    let last = page.last().map(|s| s.id.to_string());
    Ok(Reply::written(StatusCode::OK, |body| {
        body.objects("servers", &page, |server, view| show(call, &state, server, view));
        if let Some(links) = next_link(call, last.as_deref().filter(|_| more)) {
            body.put("servers_links", &links);
        }
    }))
}

/// The caller's servers, or with `all_tenants` everybody's.
fn of_projects(call: &Call, state: &State) -> Result<Vec<Arc<Server>>> {
    let flag = call.query.flag("all_tenants").map_err(|_| bad("all_tenants", "it is a boolean"))?;
    let of = |project| state.by(&BY_PROJECT, project).cloned().collect();
    if !flag.unwrap_or(false) {
        return Ok(of(call.cx.project()));
    }
    if !call.cx.everywhere {
        return Err(api::policy::denied("os_compute_api:servers:index:get_all_tenants"));
    }
    match call.query.get("project_id").or(call.query.get("tenant_id")) {
        None => Ok(state.all::<Server>().cloned().collect()),
        Some(project) => Ok(project.parse::<ProjectId>().map_or_else(|_| Vec::new(), of)),
    }
}

struct Times {
    since: Option<Timestamp>,
    before: Option<Timestamp>,
}

impl Times {
    fn parse(call: &Call) -> Result<Times> {
        let time = |name: &str| -> Result<Option<Timestamp>> {
            let wrong = || bad(name, "it is not a date and time");
            call.query.get(name).map(|t| Timestamp::parse(t).ok_or_else(wrong)).transpose()
        };
        Ok(Times { since: time("changes-since")?, before: time("changes-before")? })
    }

    fn pass(&self, server: &Server) -> bool {
        self.since.is_none_or(|t| server.updated >= t) && self.before.is_none_or(|t| server.updated <= t)
    }
}

fn truth(text: &str) -> bool {
    ["true", "1", "yes", "on"].contains(&text.to_ascii_lowercase().as_str())
}

/// Whether one filter lets a server pass. What is no filter passes, as Nova ignores it.
fn passes(call: &Call, state: &State, server: &Server, name: &str, value: &str) -> bool {
    let now = life::status_of(server);
    let tagged = |t: &str| server.tags.contains(t);
    match name {
        "name" => like(&server.name, value),
        "status" => call.query.all("status").any(|s| s.eq_ignore_ascii_case(now.status)),
        "vm_state" => call.query.all("vm_state").any(|s| s.eq_ignore_ascii_case(now.vm_state)),
        "task_state" => now.task == Some(value),
        "image" => server.image.is_some_and(|i| i.to_string() == value),
        "flavor" => server.flavor.id == value,
        "uuid" => server.id.to_string() == value,
        "key_name" => server.key_name.as_deref() == Some(value),
        "user_id" => server.user.to_string() == value,
        "reservation_id" => server.reservation == value,
        "host" | "node" if call.cx.everywhere => server.host.as_deref() == Some(value),
        "availability_zone" => server.zone.as_deref().unwrap_or(fleet::node::ZONE) == value,
        "hostname" => like(&server.hostname, value),
        "description" => like(server.description.as_deref().unwrap_or(""), value),
        "locked" => server.locked == truth(value),
        // What is deleted is in the archive, and that is not built yet: nobody has any.
        "deleted" => !truth(value),
        "tags" => value.split(',').all(tagged),
        "tags-any" => value.split(',').any(tagged),
        "not-tags" => !value.split(',').all(tagged),
        "not-tags-any" => !value.split(',').any(tagged),
        "ip" | "ip6" => {
            let fits = |a: std::net::IpAddr| a.is_ipv4() == (name == "ip") && like(&a.to_string(), value);
            view::ports(state, server).iter().any(|p| p.fixed.iter().any(|f| fits(f.address)))
        }
        _ => true,
    }
}

/// Nova's filters are regular expressions; what everybody uses of them is a part of the text, `^`, `$`, `.*` and `\.`.
fn like(text: &str, pattern: &str) -> bool {
    let (start, pattern) = pattern.strip_prefix('^').map_or((false, pattern), |p| (true, p));
    let (end, pattern) = pattern.strip_suffix('$').map_or((false, pattern), |p| (true, p));
    let pattern = pattern.strip_suffix(".*").unwrap_or(pattern).replace("\\.", ".");
    match (start, end) {
        (true, true) => text == pattern,
        (true, false) => text.starts_with(&pattern),
        (false, true) => text.ends_with(&pattern),
        (false, false) => text.contains(&pattern),
    }
}

/// What Nova sorts by although every server of ours is alike in it.
const ALIKE: [&str; 14] = [
    "display_description",
    "locked",
    "image_ref",
    "instance_type_id",
    "project_id",
    "user_id",
    "availability_zone",
    "launched_at",
    "launch_index",
    "root_device_name",
    "config_drive",
    "access_ip_v4",
    "access_ip_v6",
    "auto_disk_config",
];

fn newest_first(a: &Arc<Server>, b: &Arc<Server>) -> Ordering {
    b.created.cmp(&a.created).then(b.id.cmp(&a.id))
}

/// Leaves the first ones, in any order: what is not shown need not be sorted.
fn leave_first<T>(found: &mut Vec<T>, count: usize, order: impl FnMut(&T, &T) -> Ordering) {
    if count < found.len() {
        found.select_nth_unstable_by(count, order);
        found.truncate(count);
    }
}

fn sort(call: &Call, found: &mut [Arc<Server>]) -> Result<()> {
    let keys: Vec<&str> = call.query.all("sort_key").collect();
    let dirs: Vec<&str> = call.query.all("sort_dir").collect();
    found.sort_by(newest_first);
    // The last key first, each time stably: so the first key rules.
    for (at, key) in keys.iter().enumerate().rev() {
        let down = dirs.get(at).is_none_or(|d| *d == "desc");
        let by: fn(&Server) -> String = match *key {
            "display_name" | "name" => |s| s.name.clone(),
            "created_at" | "created" => |s| format!("{:020}", s.created.0),
            "updated_at" | "updated" => |s| format!("{:020}", s.updated.0),
            "uuid" | "id" => |s| s.id.to_string(),
            "vm_state" | "status" | "power_state" | "task_state" => |s| life::status_of(s).status.to_string(),
            "host" | "node" => |s| s.host.clone().unwrap_or_default(),
            "hostname" => |s| s.hostname.clone(),
            "key_name" => |s| s.key_name.clone().unwrap_or_default(),
            alike if ALIKE.contains(&alike) => continue,
            other => {
                return Err(bad(
                    "sort_key",
                    &format!("'{}' is not one of the sort keys", other.escape_default()),
                ));
            }
        };
        found.sort_by(|a, b| if down { by(b).cmp(&by(a)) } else { by(a).cmp(&by(b)) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_are_left_however_they_lie() {
        for (count, expect) in [(0, 0..0), (1, 0..1), (7, 0..7), (100, 0..100), (101, 0..100)] {
            let mut found: Vec<u32> = (0..100).map(|n| n * 37 % 100).collect();
            super::leave_first(&mut found, count, u32::cmp);
            found.sort_unstable();
            assert_eq!(found, expect.collect::<Vec<_>>());
        }
    }

    #[test]
    fn patterns_are_parts_ends_and_wholes() {
        let cases = [
            ("web", true),
            ("^web", true),
            ("-1$", true),
            ("^web-1$", true),
            ("^web.*", true),
            ("^eb", false),
        ];
        for (pattern, expect) in cases {
            assert_eq!(super::like("web-1", pattern), expect, "{pattern}");
        }
    }
}
