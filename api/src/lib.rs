//! REST as OpenStack's clients know it: one listener, a path per service, tables of routes and rules.
//!
//! A service hands in a [`Service`]: its routes with their policy rules and microversions, its fault shape, its rules.
//! This crate finds the route, checks the token, negotiates the microversion, applies the rule, reads the body within
//! its limit, runs the handler, and turns kinds of errors into faults.
//!
//! Limits: `BODY_MAX` for a JSON body, `HEADERS_MAX` for the head of a request, `PAGE_MAX` for a page.
//!
//! Deliberately absent: what any resource means, and any identity header from outside (they are stripped).

pub mod call;
pub mod fault;
pub mod listen;
pub mod page;
pub mod policy;
pub mod reply;
pub mod route;
pub mod server;
pub mod version;
pub mod view;

pub use call::{Call, Query};
pub use fault::Faults;
pub use listen::{Listen, listen};
pub use policy::{Policy, Rule, Target};
pub use reply::Reply;
pub use route::{Mounted, Route, Service, delete, get, head, patch, post, put};
pub use server::{Api, Identity};
pub use version::{Microversions, Version, v};
pub use view::View;

/// Bytes of a JSON body unless the route says otherwise.
pub const BODY_MAX: usize = 1 << 20;
/// Bytes of a request's line and headers together.
pub const HEADERS_MAX: usize = 64 << 10;
/// Entries of a page; a larger `limit` is cut to it.
pub const PAGE_MAX: usize = 1_000;
