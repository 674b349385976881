//! A value that is never printed and that reaches the log only sealed.
//!
//! `Secret` serialises through a cipher that the store installs around its encoding and decoding (`with_cipher`).
//! Anywhere else serialising one is an error, so a secret cannot slip into an answer or a trace.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// Seals and opens bytes; `store` has the one implementation, its key is the cell's.
pub trait Cipher: Send + Sync {
    /// Text that only this cell can open. The same input gives the same text.
    fn seal(&self, plain: &[u8]) -> String;
    fn open(&self, sealed: &str) -> Option<Vec<u8>>;
}

thread_local! {
    static CIPHER: RefCell<Option<Arc<dyn Cipher>>> = const { RefCell::new(None) };
}

/// Runs `f` with secrets readable and writable through `cipher`.
pub fn with_cipher<T>(cipher: &Arc<dyn Cipher>, f: impl FnOnce() -> T) -> T {
    struct Reset(Option<Arc<dyn Cipher>>);
    impl Drop for Reset {
        fn drop(&mut self) {
            CIPHER.with(|c| *c.borrow_mut() = self.0.take());
        }
    }
    let _reset = Reset(CIPHER.with(|c| c.borrow_mut().replace(cipher.clone())));
    f()
}

/// A string with secret content.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The content. The name is meant to stand out in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let sealed = CIPHER.with(|c| c.borrow().as_ref().map(|c| c.seal(self.0.as_bytes())));
        sealed.ok_or_else(|| serde::ser::Error::custom("a secret outside of the store"))?.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Secret, D::Error> {
        let text = String::deserialize(d)?;
        let plain = CIPHER.with(|c| c.borrow().as_ref().and_then(|c| c.open(&text)));
        let plain = plain.ok_or_else(|| {
            serde::de::Error::custom(
                "a secret that this cell's key does not open (cell.key belongs to another cloud?)",
            )
        })?;
        String::from_utf8(plain).map(Secret).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Reverse;
    impl Cipher for Reverse {
        fn seal(&self, plain: &[u8]) -> String {
            String::from_utf8_lossy(plain).chars().rev().collect()
        }
        fn open(&self, sealed: &str) -> Option<Vec<u8>> {
            Some(sealed.chars().rev().collect::<String>().into_bytes())
        }
    }

    #[test]
    fn is_written_only_through_a_cipher_and_never_printed() {
        let secret = Secret::new("abc");
        assert!(serde_json::to_string(&secret).is_err());
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        let cipher: Arc<dyn Cipher> = Arc::new(Reverse);
        let sealed = with_cipher(&cipher, || serde_json::to_string(&secret)).unwrap();
        assert_eq!(sealed, "\"cba\"");
        assert_eq!(with_cipher(&cipher, || serde_json::from_str::<Secret>(&sealed)).unwrap(), secret);
        assert!(serde_json::from_str::<Secret>(&sealed).is_err());
    }
}
