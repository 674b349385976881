//! The messages of etcd's v3 API that are used here, with the field numbers of its `rpc.proto`.

use bytes::Bytes;
use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub struct Header {
    #[prost(int64, tag = "3")]
    pub revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Range {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Up to here and not including it; empty: the one key.
    #[prost(bytes = "bytes", tag = "2")]
    pub end: Bytes,
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// Of the store; 0: the newest.
    #[prost(int64, tag = "4")]
    pub revision: i64,
    #[prost(bool, tag = "8")]
    pub keys_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ranged {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Put {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeleteRange {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub end: Bytes,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Op {
    #[prost(message, tag = "1")]
    Range(Range),
    #[prost(message, tag = "2")]
    Put(Put),
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRange),
}

#[derive(Clone, PartialEq, Message)]
pub struct RequestOp {
    #[prost(oneof = "Op", tags = "1, 2, 3")]
    pub op: Option<Op>,
}

/// Only ranges are looked at again.
#[derive(Clone, PartialEq, Message)]
pub struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    pub range: Option<Ranged>,
}

/// The key has this value; or it was never made, where `made` is 0.
#[derive(Clone, PartialEq, Message)]
pub struct Compare {
    #[prost(int32, tag = "2")]
    pub target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub key: Bytes,
    #[prost(int64, optional, tag = "5")]
    pub made: Option<i64>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub value: Option<Bytes>,
}

const TARGET_MADE: i32 = 1;
const TARGET_VALUE: i32 = 3;

impl Compare {
    pub fn is(key: String, value: impl ToString) -> Compare {
        let value = Some(value.to_string().into());
        Compare { target: TARGET_VALUE, key: key.into(), made: None, value }
    }

    pub fn absent(key: String) -> Compare {
        Compare { target: TARGET_MADE, key: key.into(), made: Some(0), value: None }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Txn {
    #[prost(message, repeated, tag = "1")]
    pub compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    pub failure: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TxnDone {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub responses: Vec<ResponseOp>,
}

impl TxnDone {
    pub fn revision(&self) -> i64 {
        self.header.as_ref().map_or(0, |h| h.revision)
    }

    /// What the range at this place of the branch found.
    pub fn found(&self, place: usize) -> &[KeyValue] {
        self.responses.get(place).and_then(|r| r.range.as_ref()).map_or(&[], |r| &r.kvs)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Compact {
    #[prost(int64, tag = "1")]
    pub revision: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Authenticate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub password: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Authenticated {
    #[prost(string, tag = "2")]
    pub token: String,
}

/// An answer of which nothing is read.
#[derive(Clone, PartialEq, Message)]
pub struct Ignored {}

pub fn put(key: String, value: impl Into<Bytes>) -> RequestOp {
    RequestOp { op: Some(Op::Put(Put { key: key.into(), value: value.into() })) }
}

pub fn range(range: Range) -> RequestOp {
    RequestOp { op: Some(Op::Range(range)) }
}

pub fn delete(key: String, end: String) -> RequestOp {
    RequestOp { op: Some(Op::DeleteRange(DeleteRange { key: key.into(), end: end.into() })) }
}
