//! Typed ids: 128 bits, written as dashed UUIDs (Nova, Neutron, Glance) or as 32 hex digits (Keystone).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;
use uuid::Uuid;

/// What an id names; a record implements it for itself.
pub trait IdKind: 'static {
    /// True: 32 hex digits, as Keystone writes its ids. False: a dashed UUID.
    const HEX: bool = false;
    /// The word that the id of all zeroes is written as (`default`, Keystone's first domain).
    const ZERO: Option<&'static str> = None;
}

/// The id of one `K`.
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// Kinds that the context names, below the crate that has their records.
pub mod kind {
    use super::IdKind;

    macro_rules! hex {
        ($($name:ident)*) => { $(
            #[derive(Debug)]
            pub enum $name {}
            impl IdKind for $name { const HEX: bool = true; }
        )* };
    }
    hex! { Project User Role Group }

    #[derive(Debug)]
    pub enum Domain {}
    impl IdKind for Domain {
        const HEX: bool = true;
        const ZERO: Option<&'static str> = Some("default");
    }
}

pub type ProjectId = Id<kind::Project>;
pub type UserId = Id<kind::User>;
pub type DomainId = Id<kind::Domain>;
pub type RoleId = Id<kind::Role>;
pub type GroupId = Id<kind::Group>;

impl<K> Id<K> {
    pub const ZERO: Id<K> = Id(Uuid::nil(), PhantomData);

    pub const fn from_uuid(uuid: Uuid) -> Id<K> {
        Id(uuid, PhantomData)
    }

    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// A random (version 4) id of 128 bits that the caller took from its seed.
    pub const fn from_random(bits: u128) -> Id<K> {
        Id(uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid(), PhantomData)
    }

    /// The first four bytes: what short names of devices and files are made of.
    pub fn short(self) -> u32 {
        (self.0.as_u128() >> 96) as u32
    }
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = crate::Error;

    /// Reads the dashed and the bare form; the zero word where the kind has one.
    fn from_str(s: &str) -> Result<Id<K>, crate::Error> {
        if K::ZERO == Some(s) {
            return Ok(Id::ZERO);
        }
        match (s.len(), Uuid::try_parse(s)) {
            (32 | 36, Ok(uuid)) => Ok(Id::from_uuid(uuid)),
            _ => Err(crate::Error::not_found(format!("'{}' is not an id.", s.escape_default()))),
        }
    }
}

impl<K: IdKind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match K::ZERO {
            Some(word) if self.0.is_nil() => f.write_str(word),
            _ if K::HEX => write!(f, "{}", self.0.simple()),
            _ => write!(f, "{}", self.0.hyphenated()),
        }
    }
}

impl<K: IdKind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: IdKind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; 36];
        match K::ZERO {
            Some(word) if self.0.is_nil() => s.serialize_str(word),
            _ if K::HEX => s.serialize_str(self.0.simple().encode_lower(&mut text)),
            _ => s.serialize_str(self.0.hyphenated().encode_lower(&mut text)),
        }
    }
}

impl<'de, K: IdKind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Id<K>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Id<K> {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Id<K>) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Id<K>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Id<K>) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.0.hash(h)
    }
}
impl<K> Default for Id<K> {
    fn default() -> Id<K> {
        Id::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expect: Option<&str>) {
        assert_eq!(input.parse::<DomainId>().ok().map(|id| id.to_string()).as_deref(), expect, "{input}");
    }

    #[test]
    fn reads_both_forms_and_the_word_for_zero() {
        check("default", Some("default"));
        check("6f70656e-7374-4163-8b00-000000000001", Some("6f70656e737441638b00000000000001"));
        check("6f70656e737441638b00000000000001", Some("6f70656e737441638b00000000000001"));
        check("{6f70656e-7374-4163-8b00-000000000001}", None);
        check("6f70", None);
        check("", None);
    }

    #[test]
    fn dashed_kinds_are_written_dashed() {
        struct Port;
        impl IdKind for Port {}
        let id: Id<Port> = Id::from_random(7);
        assert_eq!(id.to_string().len(), 36);
        assert_eq!(id.to_string().parse::<Id<Port>>().unwrap(), id);
    }

    #[test]
    fn an_id_is_serialised_as_it_is_displayed() {
        struct Port;
        impl IdKind for Port {}
        fn check<K: IdKind>(id: Id<K>) {
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        }
        check(Id::<Port>::from_random(7));
        check(ProjectId::from_random(7));
        check(DomainId::ZERO);
    }
}
