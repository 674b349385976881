//! How a node comes to a plane and speaks with it: the token, what it asks, what it is asked.
//!
//! A token is one word that an operator carries from plane to node: `https://HOST:PORT/#AUTHORITY.SECRET`. The fragment
//! never travels: the node holds the plane to the fingerprint of its authority before it says the secret.
//!
//! The plane's certificate is for the one name `PLANE`, whatever address it is reached at: only the cell's own
//! authority signs for it.

use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// The name in the plane's certificate.
pub const PLANE: &str = "plane.shisa.internal";
/// Paths of the questions that a node asks its plane.
pub const JOIN: &str = "/v1/join";
pub const RENEW: &str = "/v1/renew";
/// The header by which a node of the plane's own machine names itself.
pub const NODE: &str = "x-shisa-node";
pub const HELLO: &str = "/v1/hello";
pub const DOCUMENT: &str = "/v1/document";
/// In its query: the node takes more than one patch, a line each, for as long as the answer goes on. A plane of an older build
/// answers one.
pub const FOLLOW: &str = "follow";
pub const REPORT: &str = "/v1/report";
/// With the image's id behind it.
pub const IMAGES: &str = "/v1/images/";
/// With the SHA-256 of a program behind it.
pub const PROGRAMS: &str = "/v1/programs/";
pub const QUESTIONS: &str = "/v1/questions";
pub const ANSWERS: &str = "/v1/answers";

/// What lets a machine join.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// `HOST:PORT` of the plane's listener for nodes.
    pub authority: String,
    /// SHA-256 of the certificate of the cell's authority, in hex.
    pub fingerprint: String,
    pub secret: String,
}

/// `HOST:PORT` of `https://HOST:PORT`, or of itself.
///
/// Errors: `Invalid` when there is no port or the scheme is another.
pub fn authority(url: &str) -> Result<String> {
    let wrong = || Error::invalid(format!("'{url}' is not https://HOST:PORT"));
    let rest = match url.split_once("://") {
        Some(("https", rest)) => rest,
        Some(_) => return Err(wrong()),
        None => url,
    };
    let authority = rest.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    match !host.is_empty() && !authority.contains('/') && port.parse::<u16>().is_ok() {
        true => Ok(authority.into()),
        false => Err(wrong()),
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "https://{}/#{}.{}", self.authority, self.fingerprint, self.secret)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Token> {
        let wrong = || Error::invalid("this is not a join token: `shisa node token` on the plane prints one");
        let (url, rest) = text.trim().split_once('#').ok_or_else(wrong)?;
        let (fingerprint, secret) = rest.split_once('.').ok_or_else(wrong)?;
        let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match hex(fingerprint) && hex(secret) {
            true => Ok(Token {
                authority: authority(url)?,
                fingerprint: fingerprint.to_ascii_lowercase(),
                secret: secret.into(),
            }),
            false => Err(wrong()),
        }
    }
}

/// Bytes of a certificate, key or request, written as hex.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Der(pub Vec<u8>);

/// Keys are among them.
impl fmt::Debug for Der {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Der({} bytes)", self.0.len())
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

impl Der {
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    pub fn from_hex(text: &str) -> Option<Der> {
        unhex(text).map(Der)
    }
}

impl Serialize for Der {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.to_hex().serialize(s)
    }
}

impl<'de> Deserialize<'de> for Der {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Der, D::Error> {
        let text = String::deserialize(d)?;
        Der::from_hex(&text).ok_or_else(|| serde::de::Error::custom("not hex digits"))
    }
}

/// A machine wants to be a node. Said again with the same key, it uses no more of the token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    pub secret: String,
    pub name: String,
    pub id: Uuid,
    /// PKCS #10, signed with the node's own key. What it asks for beyond its key is not read.
    pub request: Der,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// Short id of the cloud, the same on all its nodes.
    pub cloud: u32,
    pub certificate: Certificate,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    pub der: Der,
    /// Unix times in seconds: when the node asks for the next one, and when this one is over.
    pub renew: i64,
    pub expires: i64,
}

/// A node wants its next certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renew {
    pub request: Der,
}

/// What the plane asks a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    pub id: u64,
    pub ask: Ask,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// The last lines of a guest's console; none: all that is kept.
    Console { vm: Uuid, lines: Option<usize> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub id: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Text(String),
    /// There is no such guest on the node.
    Absent(String),
    /// The node could not do it, and why.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<&str>) {
        assert_eq!(text.parse::<Token>().ok().map(|t| t.authority).as_deref(), expect, "{text}");
    }

    #[test]
    fn a_token_reads_as_it_is_written_and_nothing_else_is_one() {
        let (a, b) = ("a".repeat(64), "0".repeat(64));
        let token = Token { authority: "[::1]:5443".into(), fingerprint: a.clone(), secret: b.clone() };
        assert_eq!(format!("{token}\n").parse::<Token>().unwrap().to_string(), token.to_string());
        check(&format!("https://plane:5443/#{a}.{b}"), Some("plane:5443"));
        check(&format!("plane:5443#{a}.{b}"), Some("plane:5443"));
        check(&format!("http://plane:5443/#{a}.{b}"), None);
        check(&format!("https://plane/#{a}.{b}"), None);
        check(&format!("https://plane:5443/#{a}"), None);
        check(&format!("https://plane:5443/#{a}.{}", &b[1..]), None);
        check(&format!("https://plane:5443/path#{a}.{b}"), None);
        check("", None);
    }

    #[test]
    fn bytes_are_written_as_hex() {
        let der = Der(vec![0, 0x9f, 255]);
        assert_eq!(serde_json::to_string(&der).unwrap(), "\"009fff\"");
        assert_eq!(serde_json::from_str::<Der>("\"009fff\"").unwrap(), der);
        assert!(serde_json::from_str::<Der>("\"09f\"").is_err());
    }
}
