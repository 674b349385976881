//! OAuth consumers (OS-OAUTH1): kept, with the secret that is told once. Signing in by OAuth is not offered.

use crate::App;
use crate::plain::{self, Plain, plain};
use crate::wire::{self, Map, body, fields};
use api::{Call, Reply, Route};
use base::{Result, Secret};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumerFields {
    #[serde(default)]
    pub description: Option<String>,
    #[serde(flatten)]
    pub extra: Map,
}

plain!(Consumer(ConsumerFields): "consumer", "consumer", "consumers", "OS-OAUTH1/consumers", &["description"]);

/// What a consumer signs with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumerSecret {
    pub consumer: base::Id<Consumer>,
    pub secret: Secret,
}

impl store::Record for ConsumerSecret {
    const KIND: &'static str = "consumer_secret";
    type Key = base::Id<Consumer>;

    fn key(&self) -> base::Id<Consumer> {
        self.consumer
    }
}

pub fn routes() -> Vec<Route<App>> {
    const ALL: &str = "/v3/OS-OAUTH1/consumers";
    const ONE: &str = "/v3/OS-OAUTH1/consumers/{id}";
    vec![
        api::get(ALL, "identity:list_consumers", plain::list::<Consumer>),
        api::post(ALL, "identity:create_consumer", post),
        api::get(ONE, "identity:get_consumer", plain::show::<Consumer>),
        api::patch(ONE, "identity:update_consumer", plain::change::<Consumer>),
        api::delete(ONE, "identity:delete_consumer", remove),
    ]
}

async fn post(app: App, call: Call) -> Result<Reply> {
    let mut body = body(&call, Consumer::ONE)?;
    body.remove("secret");
    let (new, cx) = (fields::<ConsumerFields>(body, Consumer::ONE)?, call.cx.clone());
    let secret = crate::token::new_key();
    let told = secret.expose().to_string();
    let made = call.write(&app.cell, move |tx| {
        let made = plain::create::<Consumer>(tx, &cx, new.clone())?;
        tx.put(ConsumerSecret { consumer: made.id, secret: secret.clone() })?;
        Ok(made)
    });
    let mut view = plain::view(&*made.await?);
    view.insert("secret".into(), told.into());
    Ok(Reply::created(&wire::one(&call, Consumer::ONE, Consumer::PATH, view)))
}

async fn remove(app: App, call: Call) -> Result<Reply> {
    let (id, cx) = (plain::id::<Consumer>(&call)?, call.cx.clone());
    call.write(&app.cell, move |tx| {
        tx.delete::<ConsumerSecret>(&id);
        plain::delete::<Consumer>(tx, &cx, id)
    })
    .await?;
    Ok(Reply::no_content())
}
