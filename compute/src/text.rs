//! Words and links as Nova's clients write and read them.

use api::Call;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A name: 1 to 255 characters, not blank at either end, printable.
#[derive(Clone, Debug, PartialEq)]
pub struct Name(pub String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Name, D::Error> {
        let text = String::deserialize(d)?;
        let length = text.chars().count();
        let good = (1..=255).contains(&length) && text.trim() == text && !text.chars().any(char::is_control);
        match good {
            true => Ok(Name(text)),
            false => Err(serde::de::Error::custom(
                "a name has 1 to 255 printable characters and no blank at its ends",
            )),
        }
    }
}

/// Metadata: keys of 1 to 255 characters, values of at most 255.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Metadata, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(d)?;
        let key = |k: &str| {
            (1..=255).contains(&k.chars().count())
                && k.chars().all(|c| c.is_ascii_alphanumeric() || "-_:. ".contains(c))
        };
        match map.iter().find(|(k, v)| !key(k) || v.chars().count() > 255) {
            None => Ok(Metadata(map)),
            Some((k, _)) => Err(serde::de::Error::custom(format!(
                "the key or value of '{}' is not valid",
                k.escape_default()
            ))),
        }
    }
}

/// A boolean, also as `"True"` and the like, as Nova's schemas allow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Flag, D::Error> {
        match Value::deserialize(d)? {
            Value::Bool(b) => Ok(Flag(b)),
            Value::String(s) if ["true", "1", "on", "yes"].contains(&s.to_lowercase().as_str()) => {
                Ok(Flag(true))
            }
            Value::String(s) if ["false", "0", "off", "no"].contains(&s.to_lowercase().as_str()) => {
                Ok(Flag(false))
            }
            other => Err(serde::de::Error::custom(format!("{other} is not a boolean"))),
        }
    }
}

/// A whole number, also as text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count(pub u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Count, D::Error> {
        let value = Value::deserialize(d)?;
        let number = value.as_u64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
        number.map(Count).ok_or_else(|| serde::de::Error::custom(format!("{value} is not a whole number")))
    }
}

/// The links of a resource: with the version and without.
pub fn links(call: &Call, collection: &str, id: &str) -> [Link; 2] {
    [
        Link { rel: "self", href: format!("{}/v2.1/{collection}/{id}", call.base) },
        bookmark(call, collection, id),
    ]
}

/// The link without the version.
pub fn bookmark(call: &Call, collection: &str, id: &str) -> Link {
    Link { rel: "bookmark", href: format!("{}/{collection}/{id}", call.base) }
}

#[derive(Clone, Debug, Serialize)]
pub struct Link {
    rel: &'static str,
    href: String,
}

/// Adds the link to the next page, when there is one after `last`.
pub fn page_links(call: &Call, body: &mut Value, key: &str, last: Option<&str>) {
    if let Some(links) = next_link(call, last) {
        body[key] = json!(links);
    }
}

/// The link to the page after `last`.
pub fn next_link(call: &Call, last: Option<&str>) -> Option<[Link; 1]> {
    last.map(|last| [Link { rel: "next", href: api::page::next(call, last) }])
}

/// What a guest is called: the server's name as a host name. Source: nova's `sanitize_hostname`.
pub fn hostname(name: &str, fallback: &str) -> String {
    let mut out = String::new();
    for c in name.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' | '.' => out.push(if c == '.' { '-' } else { c }),
            ' ' | '_' => out.push('-'),
            _ => {}
        }
    }
    let out: String = out.trim_matches('-').chars().take(63).collect();
    let out = out.trim_end_matches('-');
    if out.is_empty() { format!("server-{fallback}") } else { out.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_host_names() {
        for (name, expect) in
            [("Web 1", "web-1"), ("-a.b_c-", "a-b-c"), ("\u{4e2d}\u{6587}", "server-7"), ("", "server-7")]
        {
            assert_eq!(hostname(name, "7"), expect);
        }
    }
}
