//! `clouds.yaml`: how the OpenStack clients reach this cloud, and the only place where its first passwords stand.
//!
//! Mode 0600. A start writes the address where it listens; what else a person changed in the file stays.

use crate::state;
use base::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_norway::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The names of our entries start with this.
const PREFIX: &str = "shisa-";
pub const REGION: &str = "RegionOne";
const DOMAIN: &str = "Default";
/// The field with a file of certificates.
pub const AUTHORITY: &str = "cacert";
/// Characters of a password, five bits each.
const PASSWORD_CHARS: usize = 24;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    clouds: BTreeMap<String, Entry>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(default)]
    pub auth: Auth,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_name: Option<String>,
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Auth {
    #[serde(default)]
    pub auth_url: String,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: String,
    #[serde(default)]
    pub project_name: String,
    #[serde(default)]
    pub user_domain_name: String,
    #[serde(default)]
    pub project_domain_name: String,
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} at {}", self.username, self.auth_url)
    }
}

/// Whom clients trust to name this cloud.
#[derive(Clone, Debug, PartialEq)]
pub enum Trust {
    /// The certificates in this file.
    Authority(PathBuf),
    /// Whom their machine trusts.
    Machine,
    Unsaid,
}

pub struct Clouds {
    path: PathBuf,
    file: File,
}

impl Clouds {
    /// Errors: the file is not the YAML of a `clouds.yaml`.
    pub fn open(path: PathBuf) -> Result<Clouds> {
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => {
                text.map_err(|e| Error::unavailable(format!("{} cannot be read", path.display())).because(e))?
            }
        };
        let wrong = |e| Error::invalid(format!("{} is not a clouds.yaml", path.display())).because(e);
        let file = match text.trim().is_empty() {
            true => File::default(),
            false => serde_norway::from_str(&text).map_err(wrong)?,
        };
        Ok(Clouds { path, file })
    }

    fn save(&self) -> Result<()> {
        let text = serde_norway::to_string(&self.file);
        let text = text.map_err(|e| Error::internal("clouds.yaml cannot be put into words").because(e))?;
        state::write(&self.path, text.as_bytes(), 0o600)
    }

    /// The entry of a user of ours (`admin`), or of this very name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        let clouds = &self.file.clouds;
        clouds.get(name).or_else(|| clouds.get(&format!("{PREFIX}{name}")))
    }

    /// Names, for a sentence.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.file.clouds.keys().map(String::as_str).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }

    /// The entry of a user with a project of the same name; with a new password where there is none. Saved at once, so
    /// that no password is set that nobody knows.
    pub fn make(&mut self, user: &str, auth_url: &str) -> Result<Entry> {
        if let Some(entry) = self.get(user) {
            return Ok(entry.clone());
        }
        let auth = Auth {
            auth_url: auth_url.into(),
            username: user.into(),
            password: password(),
            project_name: user.into(),
            user_domain_name: DOMAIN.into(),
            project_domain_name: DOMAIN.into(),
            more: BTreeMap::new(),
        };
        let version = [("identity_api_version".to_string(), Value::from(3))];
        let entry = Entry { auth, region_name: Some(REGION.into()), more: version.into() };
        self.file.clouds.insert(format!("{PREFIX}{user}"), entry.clone());
        self.save()?;
        Ok(entry)
    }

    /// Our entries lead here from now on, and trust this authority where one is named. Without one they trust the
    /// machine's own where we serve TLS; else what a person wrote there stays.
    pub fn lead_to(&mut self, auth_url: &str, trust: &Trust) -> Result<()> {
        let before = self.file.clone();
        for (_, entry) in self.file.clouds.iter_mut().filter(|(name, _)| name.starts_with(PREFIX)) {
            entry.auth.auth_url = auth_url.into();
            match trust {
                Trust::Authority(path) => {
                    entry.more.insert(AUTHORITY.into(), path.display().to_string().into());
                }
                Trust::Machine => drop(entry.more.remove(AUTHORITY)),
                Trust::Unsaid => {}
            }
        }
        if self.file == before { Ok(()) } else { self.save() }
    }
}

/// Letters and digits only: it goes through shells.
fn password() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0; PASSWORD_CHARS];
    getrandom::fill(&mut bytes).expect("the kernel has random numbers once it has started");
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_a_person_wrote_stays_and_passwords_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clouds.yaml");
        let theirs = "clouds:\n  other:\n    auth: {auth_url: 'http://o', trust_id: t}\n    verify: false\ncache: {a: 1}\n";
        fs::write(&path, theirs).unwrap();
        let mut clouds = Clouds::open(path.clone()).unwrap();
        let made = clouds.make("admin", "http://a/identity/v3").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut clouds = Clouds::open(path.clone()).unwrap();
        clouds.lead_to("http://b/identity/v3", &Trust::Unsaid).unwrap();
        let again = Clouds::open(path).unwrap();
        let admin = again.get("admin").unwrap();
        assert_eq!(
            (&admin.auth.password, admin.auth.auth_url.as_str()),
            (&made.auth.password, "http://b/identity/v3")
        );
        let other = again.get("other").unwrap();
        assert_eq!((other.auth.auth_url.as_str(), other.more["verify"].as_bool()), ("http://o", Some(false)));
        assert!(again.file.more.contains_key("cache") && other.auth.more.contains_key("trust_id"));
        assert!(!format!("{:?}", again.file).contains(&made.auth.password));
    }

    #[test]
    fn an_authority_is_that_of_the_last_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut clouds = Clouds::open(dir.path().join("clouds.yaml")).unwrap();
        clouds.make("admin", "http://a").unwrap();
        let mut check = |trust: Trust, expect: Option<&str>| {
            clouds.lead_to("https://a", &trust).unwrap();
            assert_eq!(clouds.get("admin").unwrap().more.get(AUTHORITY).and_then(Value::as_str), expect);
        };
        check(Trust::Unsaid, None);
        check(Trust::Authority("/ca.pem".into()), Some("/ca.pem"));
        check(Trust::Unsaid, Some("/ca.pem"));
        check(Trust::Machine, None);
    }
}
