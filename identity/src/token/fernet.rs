//! Fernet: the form that Keystone's tokens have. AES-128-CBC and HMAC-SHA-256 under URL-safe base64 without padding.
//!
//! Source: the Fernet specification, version 0x80. The time in the clear is not read: the payload has its own.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use base::Secret;
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

const VERSION: u8 = 0x80;
/// Version, time, initialisation vector.
const HEAD: usize = 1 + 8 + 16;
const TAG: usize = 32;
/// Tokens have 250 characters or less; what is longer is not one.
pub const TEXT_MAX: usize = 512;

/// Clients may send the padding or leave it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
        .with_encode_padding(false),
);

/// One key: half signs, half encrypts.
#[derive(Clone)]
pub struct Key {
    sign: [u8; 16],
    encrypt: [u8; 16],
}

impl Key {
    /// Reads 32 bytes in base64. `None`: it is not a key.
    pub fn parse(text: &Secret) -> Option<Key> {
        let bytes: [u8; 32] = LENIENT.decode(text.expose()).ok()?.try_into().ok()?;
        let (sign, encrypt) = bytes.split_at(16);
        Some(Key { sign: sign.try_into().ok()?, encrypt: encrypt.try_into().ok()? })
    }

    pub fn seal(&self, payload: &[u8], seconds: i64, iv: [u8; 16]) -> String {
        let mut out = Vec::with_capacity(HEAD + payload.len() + 16 + TAG);
        out.push(VERSION);
        out.extend_from_slice(&seconds.to_be_bytes());
        out.extend_from_slice(&iv);
        let encrypt = cbc::Encryptor::<aes::Aes128>::new(&self.encrypt.into(), &iv.into());
        out.extend_from_slice(&encrypt.encrypt_padded_vec_mut::<Pkcs7>(payload));
        let tag = self.mac(&out).finalize().into_bytes();
        out.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(out)
    }

    /// The payload, if this key made the token. The signature is compared in constant time.
    pub fn open(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
        self.mac(signed).verify_slice(tag).ok()?;
        let (head, sealed) = signed.split_at_checked(HEAD)?;
        let iv: [u8; 16] = head[9..].try_into().ok()?;
        let decrypt = cbc::Decryptor::<aes::Aes128>::new(&self.encrypt.into(), &iv.into());
        (head[0] == VERSION).then(|| decrypt.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok())?
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.sign).expect("HMAC takes keys of any length");
        mac.chain_update(bytes)
    }
}

/// The bytes of a token's text; `None` when it cannot be one.
pub fn bytes(text: &str) -> Option<Vec<u8>> {
    if text.len() > TEXT_MAX {
        return None;
    }
    LENIENT.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::parse(&Secret::new("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=")).unwrap()
    }

    /// Source: the specification's own vector (generate.json).
    #[test]
    fn the_vector_of_the_specification() {
        let text = key().seal(b"hello", 499_162_800, std::array::from_fn(|i| i as u8));
        assert_eq!(
            text,
            "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA"
        );
        assert_eq!(key().open(&bytes(&text).unwrap()).unwrap(), b"hello");
        assert_eq!(key().open(&bytes(&format!("{text}==")).unwrap()).unwrap(), b"hello");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let good = bytes(&key().seal(b"payload", 1, [7; 16])).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(key().open(&bad).is_none(), "byte {at}");
        }
        assert!(key().open(&good[..20]).is_none());
        assert!(key().open(&[]).is_none());
    }
}
