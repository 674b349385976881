//! Things that are an id and what a client wrote, and nothing more: their verbs and handlers, once for all of them.

use crate::App;
use crate::wire::{self, Map, body, fields, fixed, many, merged, missing};
use api::{Call, Reply};
use base::{Context, Id, IdKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use store::{Record, State, Tx};

pub trait Plain: Record<Key = Id<Self>> + IdKind {
    /// The key of a body, of a list, and the path under `/v3`.
    const ONE: &'static str;
    const MANY: &'static str;
    const PATH: &'static str;
    const FILTERS: &'static [&'static str];
    type Fields: Serialize + DeserializeOwned + Clone + Send + Sync;

    fn make(id: Id<Self>, fields: Self::Fields) -> Self;
    fn fields(&self) -> &Self::Fields;

    /// Errors: what is wrong with it beside its shape.
    fn check(_state: &State, _fields: &Self::Fields) -> Result<()> {
        Ok(())
    }

    /// What hangs on it and goes with it.
    fn forget(_tx: &mut Tx, _id: Id<Self>) {}
}

pub fn get<P: Plain>(state: &State, id: Id<P>) -> Result<&Arc<P>> {
    state.get::<P>(&id).ok_or_else(|| missing(P::ONE, id))
}

pub fn create<P: Plain>(tx: &mut Tx, _cx: &Context, fields: P::Fields) -> Result<Arc<P>> {
    P::check(tx, &fields)?;
    let id = tx.new_id();
    Ok(tx.put(P::make(id, fields))?)
}

pub fn update<P: Plain>(tx: &mut Tx, _cx: &Context, id: Id<P>, fields: P::Fields) -> Result<Arc<P>> {
    get::<P>(tx, id)?;
    P::check(tx, &fields)?;
    Ok(tx.put(P::make(id, fields))?)
}

pub fn delete<P: Plain>(tx: &mut Tx, _cx: &Context, id: Id<P>) -> Result<()> {
    get::<P>(tx, id)?;
    P::forget(tx, id);
    tx.delete::<P>(&id);
    Ok(())
}

pub fn view<P: Plain>(thing: &P) -> Map {
    let mut view = wire::map(thing.fields());
    view.insert("id".into(), thing.key().to_string().into());
    view
}

pub fn id<P: Plain>(call: &Call) -> Result<Id<P>> {
    call.id("id", P::ONE)
}

pub async fn list<P: Plain>(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    many(&call, P::MANY, P::PATH, P::FILTERS, state.all::<P>().map(|p| view(&**p)))
}

pub async fn post<P: Plain>(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, P::ONE)?;
    body.remove("id");
    let (new, cx) = (fields::<P::Fields>(body, P::ONE)?, call.cx.clone());
    let made = call.write(&app.cell, move |tx| create::<P>(tx, &cx, new.clone())).await?;
    Ok(Reply::created(&wire::one(&call, P::ONE, P::PATH, view(&*made))))
}

pub async fn show<P: Plain>(app: App, call: Call) -> Result<Reply> {
    let state = app.cell.read();
    let found = get::<P>(&state, id(&call)?)?;
    Ok(Reply::ok(&wire::one(&call, P::ONE, P::PATH, view(&**found))))
}

pub async fn change<P: Plain>(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (id::<P>(&call)?, call.cx.clone());
    let mut patch = body(&call, P::ONE)?;
    fixed(&mut patch, "id", &id.to_string().into())?;
    let made = call.write(&app.cell, move |tx| {
        let new = merged(get::<P>(tx, id)?.fields(), patch.clone(), P::ONE)?;
        update::<P>(tx, &cx, id, new)
    });
    Ok(Reply::ok(&wire::one(&call, P::ONE, P::PATH, view(&*made.await?))))
}

pub async fn remove<P: Plain>(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (id::<P>(&call)?, call.cx.clone());
    call.write(&app.cell, move |tx| delete::<P>(tx, &cx, id)).await?;
    Ok(Reply::no_content())
}

/// Declares a plain kind: its record and what `Plain` needs to know.
macro_rules! plain {
    ($(#[$about:meta])* $name:ident($fields:ident): $kind:literal, $one:literal, $many:literal, $path:literal, $filters:expr
        $(, $more:item)*) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            pub id: base::Id<$name>,
            pub fields: $fields,
        }

        impl base::IdKind for $name {
            const HEX: bool = true;
        }

        impl store::Record for $name {
            const KIND: &'static str = $kind;
            type Key = base::Id<$name>;

            fn key(&self) -> base::Id<$name> {
                self.id
            }
        }

        impl $crate::plain::Plain for $name {
            const ONE: &'static str = $one;
            const MANY: &'static str = $many;
            const PATH: &'static str = $path;
            const FILTERS: &'static [&'static str] = $filters;
            type Fields = $fields;

            fn make(id: base::Id<$name>, fields: $fields) -> $name {
                $name { id, fields }
            }

            fn fields(&self) -> &$fields {
                &self.fields
            }

            $($more)*
        }
    };
}
pub(crate) use plain;
