//! What a token says, in at most 125 bytes: whose it is, where it is good, until when, and its audit ids.
//!
//! It carries the revision of the state that it was issued on, so that "issued before" is exact where a clock is not.

use base::{DomainId, Id, IdKind, ProjectId, Timestamp, UserId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use store::Revision;

use crate::app_credential::AppCredential;
use crate::trust::Trust;

/// The audit id of a token: what it is revoked by.
pub enum Audit {}

impl IdKind for Audit {
    const HEX: bool = true;
}

pub type AuditId = Id<Audit>;

/// As token bodies show it.
pub fn audit_text(id: AuditId) -> String {
    URL_SAFE_NO_PAD.encode(id.uuid().as_bytes())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Unscoped,
    Project(ProjectId),
    Domain(DomainId),
    System,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub user: UserId,
    /// Bits of `METHODS`.
    pub methods: u8,
    pub place: Place,
    pub issued: Timestamp,
    pub expires: Timestamp,
    pub revision: Revision,
    pub audit: AuditId,
    /// The first token of the chain that this one was rescoped from.
    pub chain: Option<AuditId>,
    pub trust: Option<Id<Trust>>,
    pub app_credential: Option<Id<AppCredential>>,
}

/// How a user may prove who it is; the place in this list is the bit.
pub const METHODS: [&str; 4] = ["password", "token", "application_credential", "totp"];

impl Token {
    pub fn methods(&self) -> Vec<&'static str> {
        METHODS
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.methods & (1 << bit) != 0)
            .map(|(_, m)| *m)
            .collect()
    }
}

const VERSION: u8 = 1;

pub fn encode(token: &Token) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&[VERSION, token.methods]);
    let optional = [
        token.chain.map(|i| i.uuid()),
        token.trust.map(|i| i.uuid()),
        token.app_credential.map(|i| i.uuid()),
    ];
    let flags = optional.iter().enumerate().map(|(bit, id)| (id.is_some() as u8) << bit).sum();
    out.push(flags);
    let (tag, at) = match token.place {
        Place::Unscoped => (0, None),
        Place::Project(id) => (1, Some(id.uuid())),
        Place::Domain(id) => (2, Some(id.uuid())),
        Place::System => (3, None),
    };
    out.push(tag);
    for number in [token.issued.0 as u64, token.expires.0 as u64, token.revision] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    let ids = [Some(token.user.uuid()), Some(token.audit.uuid()), at];
    for id in ids.into_iter().chain(optional).flatten() {
        out.extend_from_slice(id.as_bytes());
    }
    out
}

/// `None`: it was not made by `encode`.
pub fn decode(bytes: &[u8]) -> Option<Token> {
    let (head, mut rest) = bytes.split_first_chunk::<4>()?;
    let [VERSION, methods, flags, tag] = *head else { return None };
    let mut number = || -> Option<u64> {
        let (first, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        Some(u64::from_be_bytes(*first))
    };
    let (issued, expires, revision) = (number()?, number()?, number()?);
    let mut ids = rest.chunks(16).map(|c| c.try_into().ok().map(u128::from_be_bytes));
    let mut id = || ids.next().flatten();
    let (user, audit) = (id_of(id()?), id_of(id()?));
    let place = match tag {
        0 => Place::Unscoped,
        1 => Place::Project(id_of(id()?)),
        2 => Place::Domain(id_of(id()?)),
        3 => Place::System,
        _ => return None,
    };
    let chain = if flags & 1 != 0 { Some(id_of(id()?)) } else { None };
    let trust = if flags & 2 != 0 { Some(id_of(id()?)) } else { None };
    let app_credential = if flags & 4 != 0 { Some(id_of(id()?)) } else { None };
    let (issued, expires) = (Timestamp(issued as i64), Timestamp(expires as i64));
    Some(Token { user, methods, place, issued, expires, revision, audit, chain, trust, app_credential })
}

fn id_of<K>(bits: u128) -> Id<K> {
    Id::from_uuid(uuid::Uuid::from_u128(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(place: Place, chain: Option<u128>, trust: Option<u128>, app: Option<u128>) {
        let token = Token {
            user: id_of(1),
            methods: 3,
            place,
            issued: Timestamp(5),
            expires: Timestamp(6),
            revision: 7,
            audit: id_of(8),
            chain: chain.map(id_of),
            trust: trust.map(id_of),
            app_credential: app.map(id_of),
        };
        let bytes = encode(&token);
        assert_eq!(decode(&bytes), Some(token));
        assert!(bytes.len() <= 125);
        for cut in 0..bytes.len() {
            assert_ne!(decode(&bytes[..cut]).as_ref(), decode(&bytes).as_ref());
        }
    }

    #[test]
    fn reads_what_it_wrote_and_nothing_cut_short() {
        check(Place::Unscoped, None, None, None);
        check(Place::System, Some(9), None, None);
        check(Place::Project(id_of(3)), Some(9), Some(10), None);
        check(Place::Domain(DomainId::ZERO), None, None, Some(11));
        check(Place::Project(id_of(3)), Some(9), Some(10), Some(11));
    }
}
