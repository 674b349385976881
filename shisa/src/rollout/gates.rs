//! What a candidate must pass before it is switched to: the same records, the same answers, at about the same cost.

use crate::plane::SORTED;
use crate::planes::Planes;
use base::{Error, Result};
use fleet::door::{Mirrored, Sampled};
use hyper::Method;
use hyper::header::HeaderName;
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

/// A digest of a large cell on a busy machine.
const DIGEST_MAX: Duration = Duration::from_secs(60);
/// The candidate may have loaded later than the revision that is asked for first.
const DIGEST_TRIES: usize = 5;
/// Kinds that are named when they differ.
const NAMED_MAX: usize = 5;
const AGAIN: Duration = Duration::from_millis(5);
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Of one read, until both planes answer it from one revision.
const READ_TRIES: usize = 100;
/// Times that two answers from one revision differ before they count as different: an answer may hold the second.
const DIFFER_TIMES: usize = 3;
/// One read in so many may never be caught at one revision.
const MOVED_PART: usize = 10;
/// Answers of each plane that are timed, unless `COST_MAX` is over before.
const COST_SAMPLES: usize = 300;
const COST_MAX: Duration = Duration::from_secs(10);
/// The candidate may cost so many times what the active plane costs,
pub const COST_TIMES: u64 = 2;
/// and a difference below this is noise. A plane that follows asks the store first whether there is news.
const COST_FLOOR: Duration = Duration::from_millis(5);
pub const RSS_FLOOR: u64 = 64 << 20;

/// Parts of paths whose answers come from what the owner of the cell alone has in memory: when it heard which node.
const LEFT_OUT: [(&str, &str); 4] = [
    ("agents", "alive, and when it was heard last"),
    ("os-services", "up or down, and when it was heard last"),
    ("os-hypervisors", "up or down, and for how long"),
    ("os-availability-zone", "the zones' hosts are up or down"),
];
/// Headers that differ between any two answers.
const OWN: [&str; 4] = ["date", "x-openstack-request-id", "x-compute-request-id", fleet::door::REVISION];
/// What anyone may read, whether or not a client did lately.
const BUILT_IN: [&str; 6] =
    ["/", "/identity", "/identity/v3", "/compute/v2.1", "/network", "/image/versions"];
/// A read that tells whether a plane answers at all.
pub const PROBE: &str = "/identity/v3";

/// The two planes of a rollout, before the switch.
pub struct Sides<'a> {
    pub planes: &'a Planes,
    pub old: &'a str,
    pub new: &'a str,
}

impl Sides<'_> {
    /// The same records of every kind at one revision.
    ///
    /// Errors: which kinds differ.
    pub async fn digest(&self) -> Result<String> {
        let mut why = Error::unavailable("no digest can be had");
        for _ in 0..DIGEST_TRIES {
            let revision = self.planes.word(self.old).await?.revision;
            let ask = async |name: &str, form: &str| {
                let path = format!("/digests?revision={revision}{form}");
                self.planes.ask(name, Method::GET, &path, &Value::Null, DIGEST_MAX).await
            };
            let sorted = format!("&form={SORTED}");
            let answers = match tokio::join!(ask(self.old, &sorted), ask(self.new, &sorted)) {
                // The plane before knows no other form than the one that it writes.
                (Ok(old), Ok(_)) if old["form"] != SORTED => (Ok(old), ask(self.new, "").await),
                answers => answers,
            };
            match answers {
                (Ok(old), Ok(new)) => return equal(&old["kinds"], &new["kinds"], revision),
                (Err(error), _) | (_, Err(error)) => why = error,
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(Error::unavailable("the planes' records cannot be compared").because(why))
    }

    /// The same answers to what clients read lately.
    ///
    /// Errors: which read is answered otherwise, and how.
    pub async fn reads(&self) -> Result<(String, Vec<Sampled>)> {
        let (asked, left_out): (Vec<_>, Vec<_>) =
            self.planes.door().sample().into_iter().partition(|read| reason(&read.path).is_none());
        let clients = asked.len();
        let (mut equal, mut moved) = (Vec::new(), 0);
        for read in asked.into_iter().chain(BUILT_IN.map(Sampled::open)) {
            match self.same(&read).await? {
                true => equal.push(read),
                false => moved += 1,
            }
        }
        if moved * MOVED_PART > clients {
            return Err(Error::unavailable(format!(
                "{moved} of {clients} reads never met one revision on both planes; try again when less is written"
            )));
        }
        let whose = match clients {
            0 => "no client read anything lately that can be compared".to_string(),
            n => format!("{n} of clients"),
        };
        let mut detail = format!("{} answers are equal: {whose}, {} built in", equal.len(), BUILT_IN.len());
        if moved > 0 {
            detail += &format!("; {moved} changed too fast");
        }
        if !left_out.is_empty() {
            detail += &format!("; {} left out ({})", left_out.len(), reasons(&left_out));
        }
        Ok((detail, equal))
    }

    /// Whether both planes answer a read alike. False: it was never caught at one revision.
    async fn same(&self, read: &Sampled) -> Result<bool> {
        let (old, new) = (self.planes.upstream(self.old)?, self.planes.upstream(self.new)?);
        let mut differed = 0;
        for _ in 0..READ_TRIES {
            let answers = tokio::join!(old.mirror(read, ANSWER_MAX), new.mirror(read, ANSWER_MAX));
            let difference = match answers {
                (Err(_), _) => None,
                (_, Err(error)) => Some(error.chain()),
                (Ok(old), Ok(new)) => match difference(&old, &new) {
                    None => return Ok(true),
                    there => there.filter(|_| old.revision.is_some() && old.revision == new.revision),
                },
            };
            if let Some(difference) = difference {
                differed += 1;
                if differed >= DIFFER_TIMES {
                    let path = read.path.split('?').next().unwrap_or_default();
                    return Err(Error::conflict(format!(
                        "GET {path} is answered otherwise by the candidate: {difference}"
                    )));
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(false)
    }

    /// Times of the same reads, which both planes answer from what they have, one after the other; and memory.
    ///
    /// Errors: what is too slow or too large.
    pub async fn cost(&self, reads: &[Sampled]) -> Result<String> {
        let (old, new) = (self.planes.upstream(self.old)?, self.planes.upstream(self.new)?);
        let (mut olds, mut news) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        for read in reads.iter().cycle() {
            if news.len() >= COST_SAMPLES || begin.elapsed() > COST_MAX {
                break;
            }
            olds.push(old.mirror_memory(read, ANSWER_MAX).await?.took);
            news.push(new.mirror_memory(read, ANSWER_MAX).await?.took);
        }
        let (before, after) = (median(&mut olds), median(&mut news));
        let (old, new) = (self.planes.word(self.old).await?, self.planes.word(self.new).await?);
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let times =
            format!("median of {} reads {:.2} ms, before {:.2} ms", news.len(), ms(after), ms(before));
        let memory = format!("{} MiB, before {} MiB", new.rss_bytes >> 20, old.rss_bytes >> 20);
        let over = |what: &str| Error::conflict(format!("the candidate {what}: {times}; {memory}"));
        if after > before * COST_TIMES as u32 && after - before > COST_FLOOR {
            return Err(over("is too slow"));
        }
        match too_large(new.rss_bytes, old.rss_bytes) {
            true => Err(over("needs too much memory")),
            false => Ok(format!("{times}; {memory}")),
        }
    }
}

pub fn too_large(new: u64, old: u64) -> bool {
    new > old * COST_TIMES && new - old > RSS_FLOOR
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Why a read is left out, if it is.
fn reason(path: &str) -> Option<&'static str> {
    let path = path.split('?').next().unwrap_or_default();
    LEFT_OUT.iter().find(|(part, _)| path.split('/').any(|p| p == *part)).map(|(_, why)| *why)
}

fn reasons(reads: &[Sampled]) -> String {
    let told = |(part, why): &(&str, &'static str)| {
        reads.iter().any(|read| reason(&read.path) == Some(why)).then(|| format!("{part}: {why}"))
    };
    LEFT_OUT.iter().filter_map(told).collect::<Vec<_>>().join("; ")
}

/// Kinds that the candidate alone has are its own as long as they are empty.
fn equal(old: &Value, new: &Value, revision: u64) -> Result<String> {
    let none = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&none), new.as_object().unwrap_or(&none));
    let records =
        |kinds: &Map<String, Value>| kinds.values().filter_map(|d| d["records"].as_u64()).sum::<u64>();
    let differ = old.iter().filter(|(kind, digest)| new.get(*kind) != Some(digest)).map(|(kind, _)| kind);
    let added = new.iter().filter(|(kind, digest)| !old.contains_key(*kind) && digest["records"] != 0);
    let differ: Vec<&str> =
        differ.chain(added.map(|(kind, _)| kind)).take(NAMED_MAX).map(String::as_str).collect();
    match differ.is_empty() && !old.is_empty() {
        true => {
            Ok(format!("{} records of {} kinds are equal at revision {revision}", records(old), old.len()))
        }
        false => Err(Error::conflict(format!(
            "the candidate has other records than the active plane at revision {revision}: {}",
            differ.join(", ")
        ))),
    }
}

/// How two answers differ, in words that hold nothing of them.
fn difference(old: &Mirrored, new: &Mirrored) -> Option<String> {
    if old.status != new.status {
        return Some(format!("{} before, {} now", old.status, new.status));
    }
    let names = old.headers.keys().chain(new.headers.keys()).filter(|name| !OWN.contains(&name.as_str()));
    let values =
        |of: &Mirrored, name: &HeaderName| of.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    if let Some(name) = names.into_iter().find(|name| values(old, name) != values(new, name)) {
        return Some(format!("another header {name}"));
    }
    let (old, new) = (anonymous(old), anonymous(new));
    if old == new {
        return None;
    }
    let at = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    Some(format!("another body from byte {at} on, {} bytes before, {} now", old.len(), new.len()))
}

/// The body without the request's id, which some faults repeat.
fn anonymous(of: &Mirrored) -> Vec<u8> {
    let id = of.headers.get("x-openstack-request-id").map(|id| id.as_bytes()).unwrap_or_default();
    let mut body = of.body.to_vec();
    while !of.status.is_success()
        && !id.is_empty()
        && let Some(at) = body.windows(id.len()).position(|part| part == id)
    {
        body.drain(at..at + id.len());
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn digests_are_equal_kind_by_kind() {
        let one = json!({"network": {"records": 2, "sum": "a"}});
        let check = |new: Value, good: bool| assert_eq!(equal(&one, &new, 7).is_ok(), good, "{new}");
        check(one.clone(), true);
        check(json!({"network": {"records": 2, "sum": "a"}, "new": {"records": 0, "sum": "0"}}), true);
        check(json!({"network": {"records": 2, "sum": "a"}, "new": {"records": 1, "sum": "0"}}), false);
        check(json!({"network": {"records": 2, "sum": "b"}}), false);
        check(json!({}), false);
        assert!(equal(&json!({}), &json!({}), 7).is_err());
    }

    #[test]
    fn answers_differ_in_status_header_and_body_and_not_in_what_is_their_own() {
        let answer = |status: u16, id: &str, body: String| {
            let mut headers = hyper::HeaderMap::new();
            headers.insert("x-openstack-request-id", id.parse().unwrap());
            let status = hyper::StatusCode::from_u16(status).unwrap();
            Mirrored { status, headers, body: body.into(), revision: Some(1), took: Duration::ZERO }
        };
        let one = answer(404, "req-1", "no req-1".into());
        assert_eq!(difference(&one, &answer(404, "req-2", "no req-2".into())), None);
        assert!(difference(&one, &answer(404, "req-2", "no req-1".into())).is_some());
        assert!(difference(&one, &answer(200, "req-1", "no req-1".into())).unwrap().starts_with("404"));
    }

    #[test]
    fn what_the_owner_alone_knows_is_left_out_by_name() {
        assert!(reason("/network/v2.0/agents?host=a").is_some());
        assert!(reason("/compute/v2.1/os-hypervisors/detail").is_some());
        assert_eq!(reason("/network/v2.0/networks?name=agents"), None);
    }
}
