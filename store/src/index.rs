//! Secondary indexes: an index key is bytes whose order is the order of the values.

use base::Id;
use base::units::Mac;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

/// Order-preserving bytes of one or more values.
///
/// Most are short and stand in place: a changed node of an index copies its neighbours, which must not allocate.
#[derive(Clone)]
pub struct IndexKey(Bytes);

const SHORT_MAX: usize = 30;

#[derive(Clone)]
enum Bytes {
    Short(u8, [u8; SHORT_MAX]),
    Long(Arc<[u8]>),
}

impl From<&[u8]> for IndexKey {
    fn from(bytes: &[u8]) -> IndexKey {
        if bytes.len() > SHORT_MAX {
            return IndexKey(Bytes::Long(bytes.into()));
        }
        let mut short = [0; SHORT_MAX];
        short[..bytes.len()].copy_from_slice(bytes);
        IndexKey(Bytes::Short(bytes.len() as u8, short))
    }
}

impl Deref for IndexKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short(len, bytes) => &bytes[..usize::from(*len)],
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for IndexKey {
    fn eq(&self, other: &IndexKey) -> bool {
        **self == **other
    }
}

impl Eq for IndexKey {}

impl PartialOrd for IndexKey {
    fn partial_cmp(&self, other: &IndexKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IndexKey {
    fn cmp(&self, other: &IndexKey) -> Ordering {
        (**self).cmp(other)
    }
}

/// A secondary index of `R`, declared as a constant beside the record.
pub struct Index<R> {
    pub name: &'static str,
    pub unique: bool,
    /// Pushes the keys under which a record is found: none, one or many.
    pub keys: fn(&R, &mut Vec<IndexKey>),
}

impl<R> Index<R> {
    pub const fn many(name: &'static str, keys: fn(&R, &mut Vec<IndexKey>)) -> Index<R> {
        Index { name, unique: false, keys }
    }

    pub const fn unique(name: &'static str, keys: fn(&R, &mut Vec<IndexKey>)) -> Index<R> {
        Index { name, unique: true, keys }
    }
}

/// A value that can stand in an index key.
pub trait IndexPart {
    fn put(&self, out: &mut Vec<u8>);

    fn key(&self) -> IndexKey {
        let mut out = Vec::with_capacity(SHORT_MAX);
        self.put(&mut out);
        out.as_slice().into()
    }
}

impl<K> IndexPart for Id<K> {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.uuid().as_bytes());
    }
}

/// Text ends with two zero bytes; a zero inside is followed by 255, so that a prefix sorts first.
impl IndexPart for str {
    fn put(&self, out: &mut Vec<u8>) {
        for byte in self.bytes() {
            out.push(byte);
            if byte == 0 {
                out.push(255);
            }
        }
        out.extend_from_slice(&[0, 0]);
    }
}

impl IndexPart for String {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_str().put(out);
    }
}

impl IndexPart for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
}

impl IndexPart for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
}

impl IndexPart for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
}

impl IndexPart for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            IpAddr::V4(a) => {
                out.push(4);
                out.extend_from_slice(&a.octets());
            }
            IpAddr::V6(a) => {
                out.push(6);
                out.extend_from_slice(&a.octets());
            }
        }
    }
}

impl IndexPart for Mac {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

impl<T: IndexPart> IndexPart for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.is_some() as u8);
        if let Some(value) = self {
            value.put(out);
        }
    }
}

impl<T: IndexPart + ?Sized> IndexPart for &T {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }
}

impl<A: IndexPart, B: IndexPart> IndexPart for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
}

impl<A: IndexPart, B: IndexPart, C: IndexPart> IndexPart for (A, B, C) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
        self.2.put(out);
    }
}
