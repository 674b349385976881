//! Keypairs: OpenSSH public keys by user and name. Until 2.91 the service makes a pair when no key is given.

use crate::App;
use crate::KEY_PAIRS;
use crate::text::page_links;
use api::page::Page;
use api::{Call, Reply, v};
use base::{Error, Result, Timestamp, UserId};
use http::StatusCode;
use identity::limit;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use store::{Index, IndexPart, Record, State};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Keypair {
    pub user: UserId,
    pub name: String,
    /// `ssh` or `x509`.
    pub kind: String,
    pub public_key: String,
    /// MD5 of the key's blob, pairs of hex digits between colons.
    pub fingerprint: String,
    pub created: Timestamp,
    /// The revision that made it: Nova shows a number as its id.
    pub number: u64,
}

pub const BY_USER: Index<Keypair> = Index::many("user", |k, keys| keys.push(k.user.key()));

impl Record for Keypair {
    const KIND: &'static str = "keypair";
    type Key = String;
    const INDEXES: &'static [Index<Keypair>] = &[BY_USER];

    fn key(&self) -> String {
        key(self.user, &self.name)
    }
}

fn key(user: UserId, name: &str) -> String {
    format!("{user}/{name}")
}

pub fn get(state: &State, user: UserId, name: &str) -> Result<Arc<Keypair>> {
    state.get::<Keypair>(&key(user, name)).cloned().ok_or_else(|| {
        Error::not_found(format!("Keypair {} not found for user {user}", name.escape_default()))
    })
}

/// Reads an OpenSSH public key; its fingerprint.
fn fingerprint(text: &str) -> Result<String> {
    use base64::Engine;
    let bad = || Error::invalid("Keypair data is invalid: failed to generate fingerprint");
    let blob = text.split_whitespace().nth(1).ok_or_else(bad)?;
    let blob = base64::engine::general_purpose::STANDARD.decode(blob).map_err(|_| bad())?;
    let kind = text.split_whitespace().next().unwrap_or("");
    let length =
        blob.get(..4).map(|l| u32::from_be_bytes([l[0], l[1], l[2], l[3]]) as usize).ok_or_else(bad)?;
    if blob.get(4..4 + length) != Some(kind.as_bytes()) {
        return Err(bad());
    }
    let pairs: Vec<String> = Md5::digest(&blob).iter().map(|b| format!("{b:02x}")).collect();
    Ok(pairs.join(":"))
}

/// An Ed25519 pair: private key in OpenSSH's form, and public key.
fn generate() -> Result<(String, String)> {
    let failed = |e: ssh_key::Error| Error::internal("a key pair could not be made").because(e);
    let mut seed = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    let pair = ssh_key::private::Ed25519Keypair::from_seed(&seed);
    let key = ssh_key::PrivateKey::new(pair.into(), "Generated-by-Shisa").map_err(failed)?;
    let private = key.to_openssh(ssh_key::LineEnding::LF).map_err(failed)?.to_string();
    Ok((private, key.public_key().to_openssh().map_err(failed)?))
}

fn view(call: &Call, pair: &Keypair) -> Value {
    let mut view = json!({"name": pair.name, "public_key": pair.public_key, "fingerprint": pair.fingerprint});
    if call.version >= v(2, 2) {
        view["type"] = json!(pair.kind);
    }
    view
}

/// The user whose keys are meant: the caller, or from 2.10 on another one for an administrator.
fn user(call: &Call) -> Result<UserId> {
    let Some(other) = call.query.get("user_id").filter(|_| call.version >= v(2, 10)) else {
        return Ok(call.cx.user());
    };
    let other: UserId = other.parse().map_err(|_| Error::invalid("user_id is not an id."))?;
    match other == call.cx.user() || call.cx.everywhere {
        true => Ok(other),
        false => Err(Error::forbidden("Policy doesn't allow os_compute_api:os-keypairs to be performed.")),
    }
}

pub async fn list(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let mut found: Vec<&Arc<Keypair>> = state.by(&BY_USER, user(&call)?).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let page = if call.version >= v(2, 35) {
        Page::of(&call.query)?
    } else {
        Page { limit: api::PAGE_MAX, marker: None }
    };
    let (page, more) = page.cut(found, |k| k.name.clone())?;
    let views: Vec<_> = page.iter().map(|k| json!({"keypair": view(&call, k)})).collect();
    let mut body = json!({"keypairs": views});
    page_links(&call, &mut body, "keypairs_links", page.last().map(|k| k.name.as_str()).filter(|_| more));
    Ok(Reply::ok(&body))
}

pub async fn show(app: App, call: Call) -> Result<Reply> {
    let pair = get(&app.cell.read(), user(&call)?, call.param("name"))?;
    let mut view = view(&call, &pair);
    view["user_id"] = json!(pair.user);
    view["id"] = json!(pair.number);
    view["created_at"] = json!(pair.created.micros());
    view["deleted"] = json!(false);
    view["deleted_at"] = Value::Null;
    view["updated_at"] = Value::Null;
    Ok(Reply::ok(&json!({"keypair": view})))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeypair {
    name: String,
    #[serde(default)]
    public_key: Option<String>,
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    user_id: Option<UserId>,
}

fn check(call: &Call, new: &NewKeypair) -> Result<()> {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || " -_".contains(c) || (call.version >= v(2, 92) && "@.".contains(c))
    };
    let length = new.name.chars().count();
    if !(1..=255).contains(&length) || !new.name.chars().all(plain) || new.name.trim() != new.name {
        return Err(Error::invalid(format!(
            "Invalid input for field/attribute name. Value: {}. Keypair name contains unsafe characters or has a wrong length.",
            new.name.escape_default()
        )));
    }
    if new.kind.is_some() && call.version < v(2, 2) {
        return Err(Error::invalid("Additional properties are not allowed ('type' was unexpected)"));
    }
    if let Some(kind) = new.kind.as_deref().filter(|k| *k != "ssh") {
        return Err(Error::invalid(format!(
            "Invalid input for field/attribute type. '{}' is not one of ['ssh']",
            kind.escape_default()
        )));
    }
    match new.user_id.is_some_and(|u| u != call.cx.user()) && !call.cx.everywhere {
        true => {
            Err(Error::forbidden("Policy doesn't allow os_compute_api:os-keypairs:create to be performed."))
        }
        false => Ok(()),
    }
}

pub async fn create(app: App, call: Call) -> Result<Reply> {
    let new: NewKeypair = call.json_in("keypair")?;
    check(&call, &new)?;
    let (private, public) = match &new.public_key {
        Some(key) => (None, key.trim().to_string()),
        None if call.version >= v(2, 92) => {
            return Err(Error::invalid(
                "Invalid input for field/attribute keypair. 'public_key' is a required property",
            ));
        }
        None => generate().map(|(private, public)| (Some(private), public))?,
    };
    let print = fingerprint(&public)?;
    let (user, project) = (new.user_id.unwrap_or(call.cx.user()), call.cx.project());
    let pair = call
        .write(&app.cell, move |tx| {
            if tx.get::<Keypair>(&key(user, &new.name)).is_some() {
                return Err(Error::conflict(format!("Key pair '{}' already exists.", new.name)));
            }
            let (limit, used) = (limit::of(tx, project, &KEY_PAIRS), tx.by(&BY_USER, user).count() as i64);
            if limit >= 0 && used >= limit {
                return Err(Error::over_quota("Quota exceeded, too many key pairs."));
            }
            let (name, kind) = (new.name.clone(), "ssh".to_string());
            let (created, number) = (tx.now(), tx.next_revision());
            let (public_key, fingerprint) = (public.clone(), print.clone());
            Ok(tx.put(Keypair { user, name, kind, public_key, fingerprint, created, number })?)
        })
        .await?;
    let mut view = view(&call, &pair);
    view["user_id"] = json!(pair.user);
    if let Some(private) = private {
        view["private_key"] = json!(private);
    }
    let status = if call.version >= v(2, 2) { StatusCode::CREATED } else { StatusCode::OK };
    Ok(Reply::json(status, &json!({"keypair": view})))
}

pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let (user, name) = (user(&call)?, call.param("name").to_string());
    call.write(&app.cell, move |tx| {
        get(tx, user, &name)?;
        tx.delete::<Keypair>(&key(user, &name));
        Ok(())
    })
    .await?;
    Ok(if call.version >= v(2, 2) { Reply::no_content() } else { Reply::accepted_empty() })
}
