//! The table of routes: method, path, policy rule, microversions, handler. Router and documents are read from it.

use crate::call::Call;
use crate::fault::Faults;
use crate::policy::{Rule, Target};
use crate::reply::Reply;
use crate::version::{Microversions, Version, v};
use base::Result;
use http::Method;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

type Answer = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;
pub(crate) type Run = Arc<dyn Fn(Call) -> Answer + Send + Sync>;
pub(crate) type Aim = Arc<dyn Fn(&Call, &mut Target) + Send + Sync>;

/// One row of a service's table. `A` is what its handlers share.
pub struct Route<A> {
    pub method: Method,
    /// Segments in braces are parameters: `/v2.1/servers/{id}`.
    pub path: &'static str,
    /// The policy rule; `OPEN` for what needs no token.
    pub rule: &'static str,
    /// The one key of the body that picks this row: `os-start` of `{"os-start": null}`.
    pub action: Option<&'static str>,
    pub since: Version,
    pub until: Version,
    pub body_max: usize,
    pub streamed: bool,
    /// A slash at the end of the path is another path, which is not there.
    pub exact: bool,
    run: Box<dyn Fn(A, Call) -> Answer + Send + Sync>,
    aim: Option<fn(&A, &Call, &mut Target)>,
}

/// The rule of a route that needs no token.
pub const OPEN: &str = "";

macro_rules! methods {
    ($($name:ident $method:ident),*) => { $(
        pub fn $name<A, F, Fut>(path: &'static str, rule: &'static str, handler: F) -> Route<A>
        where
            F: Fn(A, Call) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<Reply>> + Send + 'static,
        {
            Route::new(Method::$method, path, rule, handler)
        }
    )* };
}

methods!(get GET, head HEAD, post POST, put PUT, patch PATCH, delete DELETE);

impl<A> Route<A> {
    pub fn new<F, Fut>(method: Method, path: &'static str, rule: &'static str, handler: F) -> Route<A>
    where
        F: Fn(A, Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply>> + Send + 'static,
    {
        Route {
            method,
            path,
            rule,
            action: None,
            since: v(0, 0),
            until: v(u16::MAX, u16::MAX),
            body_max: crate::BODY_MAX,
            streamed: false,
            exact: false,
            run: Box::new(move |app, call| Box::pin(handler(app, call))),
            aim: None,
        }
    }

    pub fn action(mut self, key: &'static str) -> Route<A> {
        self.action = Some(key);
        self
    }

    pub fn since(mut self, version: Version) -> Route<A> {
        self.since = version;
        self
    }

    /// The last microversion that has this route.
    pub fn until(mut self, version: Version) -> Route<A> {
        self.until = version;
        self
    }

    /// Does not take a slash at the end: `/images/` is the image without an id.
    pub fn exact(mut self) -> Route<A> {
        self.exact = true;
        self
    }

    /// Leaves the body to the handler as a stream.
    pub fn streamed(mut self) -> Route<A> {
        self.streamed = true;
        self
    }

    pub fn body_max(mut self, bytes: usize) -> Route<A> {
        self.body_max = bytes;
        self
    }

    /// Adds fields of the thing asked for to the rule's target, beside the path's parameters.
    pub fn target(mut self, aim: fn(&A, &Call, &mut Target)) -> Route<A> {
        self.aim = Some(aim);
        self
    }
}

/// A service before it is mounted.
pub struct Service<A> {
    pub name: &'static str,
    /// `/compute`
    pub prefix: &'static str,
    pub faults: Faults,
    pub microversions: Option<Microversions>,
    /// Paths may carry a project id after the version: `/v2.1/{project_id}/servers`.
    pub project_in_path: bool,
    /// The header that repeats the request id beside `x-openstack-request-id`.
    pub request_id_header: Option<&'static str>,
    pub rules: &'static [&'static [Rule]],
    pub routes: Vec<Route<A>>,
}

impl<A: Clone + Send + Sync + 'static> Service<A> {
    /// Binds the handlers to what they share.
    pub fn mount(self, app: A) -> Mounted {
        let mut mounted = Mounted {
            name: self.name,
            prefix: self.prefix,
            faults: self.faults,
            microversions: self.microversions,
            project_in_path: self.project_in_path,
            request_id_header: self.request_id_header,
            rules: self.rules,
            rows: Vec::new(),
            root: Segment::default(),
        };
        for route in self.routes {
            let (run, aim, shared) = (route.run, route.aim, app.clone());
            let aimed = app.clone();
            let row = Row {
                method: route.method,
                path: route.path,
                rule: route.rule,
                action: route.action,
                since: route.since,
                until: route.until,
                body_max: route.body_max,
                streamed: route.streamed,
                exact: route.exact,
                run: Arc::new(move |call| run(shared.clone(), call)),
                aim: aim.map(|aim| {
                    Arc::new(move |call: &Call, target: &mut Target| aim(&aimed, call, target)) as Aim
                }),
            };
            mounted.add(row);
        }
        mounted
    }
}

/// One row of the mounted table.
pub struct Row {
    pub method: Method,
    pub path: &'static str,
    pub rule: &'static str,
    pub action: Option<&'static str>,
    pub since: Version,
    pub until: Version,
    pub body_max: usize,
    pub streamed: bool,
    pub exact: bool,
    pub(crate) run: Run,
    pub(crate) aim: Option<Aim>,
}

/// A service with its router.
pub struct Mounted {
    pub name: &'static str,
    pub prefix: &'static str,
    pub faults: Faults,
    pub microversions: Option<Microversions>,
    pub project_in_path: bool,
    pub request_id_header: Option<&'static str>,
    pub rules: &'static [&'static [Rule]],
    pub rows: Vec<Row>,
    root: Segment,
}

#[derive(Default)]
struct Segment {
    fixed: HashMap<&'static str, Segment>,
    any: Option<Box<Segment>>,
    rows: Vec<usize>,
}

impl Mounted {
    fn add(&mut self, row: Row) {
        let mut at = &mut self.root;
        for segment in row.path.split('/').filter(|s| !s.is_empty()) {
            at = match segment.starts_with('{') {
                true => at.any.get_or_insert_default(),
                false => at.fixed.entry(segment).or_default(),
            };
        }
        at.rows.push(self.rows.len());
        self.rows.push(row);
    }

    /// The rows of a path, whatever their method. Fixed segments win over parameters.
    pub(crate) fn find(&self, segments: &[&str]) -> Vec<&Row> {
        fn descend<'a>(at: &'a Segment, rest: &[&str]) -> Option<&'a Segment> {
            let Some((first, rest)) = rest.split_first() else {
                return (!at.rows.is_empty()).then_some(at);
            };
            if let Some(found) = at.fixed.get(*first).and_then(|next| descend(next, rest)) {
                return Some(found);
            }
            descend(at.any.as_deref()?, rest)
        }
        let rows = descend(&self.root, segments).map_or(&[][..], |at| &at.rows);
        rows.iter().map(|i| &self.rows[*i]).collect()
    }
}

impl Row {
    /// The parameters that `segments` give to this row's path.
    pub(crate) fn params(&self, segments: &[&str]) -> Vec<(&'static str, String)> {
        self.path
            .split('/')
            .filter(|s| !s.is_empty())
            .zip(segments)
            .filter_map(|(name, value)| Some((name.strip_prefix('{')?.strip_suffix('}')?, value.to_string())))
            .collect()
    }
}
