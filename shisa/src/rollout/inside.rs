//! What keeps a copy of the cloud to itself: no client of it is led to another cloud, and its tokens open none.
//!
//! - Its planes are not told the names and addresses that the cloud has outside.
//! - Endpoints with a host of their own lead to the copy: those of our services to these, others to the path they had,
//!   where there may be nothing.
//! - The keys that seal tokens are new.
//! - No webhook is told of anything (`Directory::is_copy`): where owners' lead to is in their records.
//!
//! Records are changed as they stand: the process that makes the copy may be older than both planes of it.

use crate::http::ORIGIN;
use base::secret::{Cipher, with_cipher};
use base::{Error, Result, Secret};
use identity::Bootstrap;
use identity::catalog::{Endpoint, Service};
use identity::token::{self, SigningKey};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use store::Record;

/// What a plane of a copy is told as every other is.
const WORDS: [&str; 1] = ["--policy"];

/// A plane's words, without those that name what is outside.
pub fn words(of: &[String]) -> Vec<String> {
    let kept = of.chunks(2).filter(|pair| WORDS.contains(&pair[0].as_str()));
    kept.flatten().cloned().collect()
}

/// What records become on their way into a copy.
pub struct Inside {
    cipher: Arc<dyn Cipher>,
    /// Types of services by id.
    types: HashMap<String, String>,
    /// Where services of ours are, by type.
    paths: HashMap<String, String>,
}

impl Inside {
    pub fn new(cipher: Arc<dyn Cipher>) -> Inside {
        let ours = Bootstrap::new(Secret::default()).endpoints;
        let paths = ours.into_iter().map(|(kind, _, path)| (kind, path)).collect();
        Inside { cipher, types: HashMap::new(), paths }
    }

    /// Is to be shown every record before the first is altered.
    pub fn see(&mut self, kind: &str, body: &[u8]) {
        if kind == Service::KIND
            && let Ok(service) = serde_json::from_slice::<Value>(body)
            && let (Some(id), Some(kind)) = (service["id"].as_str(), service["fields"]["type"].as_str())
        {
            self.types.insert(id.into(), kind.into());
        }
    }

    /// Errors: `Conflict` when a record is not what it was in any version: nobody knows where it leads.
    pub fn alter(&self, kind: &str, body: &[u8]) -> Result<Vec<u8>> {
        if kind != Endpoint::KIND && kind != SigningKey::KIND {
            return Ok(body.into());
        }
        let bad = || {
            Error::conflict(format!(
                "a record of kind {kind} cannot be kept inside of a copy: --without-copy goes on without"
            ))
        };
        let mut record: Value = serde_json::from_slice(body).map_err(|e| bad().because(e))?;
        if kind == SigningKey::KIND {
            let key = record.get_mut("key").ok_or_else(bad)?;
            let sealed = with_cipher(&self.cipher, || serde_json::to_value(token::new_key()));
            *key = sealed.map_err(|e| bad().because(e))?;
        } else {
            let service = record["fields"]["service_id"].as_str().and_then(|id| self.types.get(id));
            let own = service.and_then(|kind| self.paths.get(kind));
            let url = record["fields"]["url"].as_str().ok_or_else(bad)?;
            record["fields"]["url"] = json!(inside(url, own.map(String::as_str)));
        }
        serde_json::to_vec(&record).map_err(|e| bad().because(e))
    }
}

/// Where an endpoint leads in a copy. `own`: where its service is, where it is one of ours.
fn inside(url: &str, own: Option<&str>) -> String {
    if url.starts_with('/') {
        return url.into();
    }
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    own.or(rest.find('/').map(|at| &rest[at..])).unwrap_or("/").into()
}

/// The first URL of a catalogue, as our client was given it, that leads elsewhere.
pub fn leads_outside(catalogue: &Value) -> Option<&str> {
    let services = catalogue["catalog"].as_array().into_iter().flatten();
    let endpoints = services.flat_map(|service| service["endpoints"].as_array().into_iter().flatten());
    let mut urls = endpoints.map(|endpoint| endpoint["url"].as_str().unwrap_or_default());
    urls.find(|url| !url.strip_prefix(ORIGIN).is_some_and(|path| path.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_a_copy_are_not_told_what_is_outside() {
        let of = ["--policy", "/p", "--public-url", "https://cloud.example", "--reach", "10.0.0.1:5001"];
        assert_eq!(words(&of.map(String::from)), ["--policy", "/p"]);
    }

    #[test]
    fn endpoints_lead_to_the_copy_and_keys_are_new() {
        let cipher = store::cipher::CellKey::cipher([1; 32]);
        let mut all = Inside::new(cipher.clone());
        for (id, kind) in [("1", "compute"), ("2", "object-store")] {
            all.see("service", json!({"id": id, "fields": {"type": kind}}).to_string().as_bytes());
        }
        let check = |service: &str, url: &str, expect: &str| {
            let body = json!({"id": "e", "fields": {"service_id": service, "url": url, "more": 1}});
            let altered = all.alter("endpoint", body.to_string().as_bytes()).unwrap();
            let altered: Value = serde_json::from_slice(&altered).unwrap();
            let expect = json!({"id": "e", "fields": {"service_id": service, "url": expect, "more": 1}});
            assert_eq!(altered, expect, "{url}");
        };
        check("1", "/compute/v2.1", "/compute/v2.1");
        check("1", "https://nova.example:8774/v2.1", "/compute/v2.1");
        check("2", "https://swift.example/v1/AUTH_%(project_id)s", "/v1/AUTH_%(project_id)s");
        check("3", "https://there", "/");
        check("3", "//there/x", "//there/x");

        let key = Secret::new("the key of the cloud");
        let body = with_cipher(&cipher, || serde_json::to_vec(&json!({"number": 7, "key": key}))).unwrap();
        let altered: Value = serde_json::from_slice(&all.alter("signing_key", &body).unwrap()).unwrap();
        let new = with_cipher(&cipher, || serde_json::from_value::<Secret>(altered["key"].clone())).unwrap();
        assert!(altered["number"] == 7 && new != key && !new.expose().is_empty());

        assert_eq!(all.alter("server", b"{ }").unwrap(), b"{ }");
        assert!(all.alter("endpoint", b"{}").unwrap_err().message().contains("--without-copy"));
    }

    #[test]
    fn a_catalogue_that_leads_elsewhere_is_seen() {
        let check = |url: &str, good: bool| {
            let catalogue = json!({"catalog": [{"endpoints": []}, {"endpoints": [{"url": url}]}]});
            assert_eq!(leads_outside(&catalogue).is_none(), good, "{url}");
        };
        check(&format!("{ORIGIN}/compute/v2.1"), true);
        check(&format!("{ORIGIN}.example/compute/v2.1"), false);
        check("https://cloud.example/compute/v2.1", false);
    }
}
