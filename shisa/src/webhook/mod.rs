//! Webhooks: the operator, and owners of servers, are told of maintenance by a POST.
//!
//! What is to be told, to whom, and how often it was tried are records (`compute::maintenance::notice`), so another plane
//! goes on where this one ends. An answer of 2xx is noted at once, and not asked for again; one that could not be noted,
//! because the process ended between the two, is: receivers know doubles by id and state.
//!
//! An owner's URL leads where `reach` allows, the operator's own anywhere. The operator's are signed with HMAC-SHA256 of the
//! body when there is a secret, in the header that GitHub made usual.
//!
//! Limits: `SENDING_MAX` at once, `PROJECT_MAX` of them of one project; `send` and `notice` have those of one.

mod reach;
mod send;
mod url;

use base::pass::{Next, Pass};
use base::{Error, ProjectId, Result, Secret, Timestamp};
use bytes::Bytes;
use clap::Args;
use compute::maintenance::notice::{self, Due, Operator, Outcome, Receiver};
use fleet::Node;
use hmac::{Hmac, Mac};
use ipnet::IpNet;
use network::network::Network;
use network::subnet;
use reach::Reach;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::{Cause, Cell, State};
use tokio::task::JoinSet;
use url::Url;

/// Notices that are on their way at once.
const SENDING_MAX: usize = 16;
/// Of them: to owners of one project, so that one whose receiver hangs does not hold up all.
const PROJECT_MAX: usize = 4;
/// Characters of a secret.
const SECRET_MIN: usize = 16;

/// What may be said of webhooks.
#[derive(Args, Clone, Debug, Default)]
pub struct Words {
    /// Who is told of each server whose node is drained, by a POST of JSON, beside the server's owner
    #[arg(long, value_name = "URL")]
    pub maintenance_webhook: Option<String>,
    /// A secret in a file: what is sent there is signed with it
    #[arg(long, value_name = "FILE", requires = "maintenance_webhook")]
    pub webhook_secret: Option<PathBuf>,
    /// Owners' webhooks may lead to these addresses, though they are not public; may be said several times
    #[arg(long, value_name = "CIDR")]
    pub webhook_allow: Vec<IpNet>,
}

impl Words {
    /// The same, for a plane.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let secret = self.webhook_secret.as_ref().map(|file| file.display().to_string());
        let one = [("--maintenance-webhook", self.maintenance_webhook.clone()), ("--webhook-secret", secret)];
        let allow = self.webhook_allow.iter().map(|net| ("--webhook-allow", net.to_string()));
        one.into_iter().filter_map(|(flag, value)| Some((flag, value?))).chain(allow).collect()
    }

    /// Errors: what is wrong with them.
    pub fn read(&self) -> Result<Webhook> {
        let operator = self.maintenance_webhook.as_deref().map(Url::parse).transpose()?;
        let secret = self.webhook_secret.as_ref().map(|file| {
            let cannot =
                |e| Error::invalid(format!("the secret {} cannot be read", file.display())).because(e);
            let secret = std::fs::read_to_string(file).map_err(cannot)?.trim().to_string();
            match secret.chars().count() < SECRET_MIN {
                true => Err(Error::invalid(format!(
                    "the secret {} has less than {SECRET_MIN} characters",
                    file.display()
                ))),
                false => Ok(Secret::new(secret)),
            }
        });
        Ok(Webhook { operator, secret: secret.transpose()?, allow: self.webhook_allow.clone() })
    }
}

/// How webhooks are told.
#[derive(Clone, Debug, Default)]
pub struct Webhook {
    operator: Option<Url>,
    secret: Option<Secret>,
    allow: Vec<IpNet>,
}

impl Webhook {
    pub fn operator(&self) -> Operator {
        if self.operator.is_some() { Operator::Told } else { Operator::Untold }
    }

    fn signature(&self, body: &[u8]) -> Option<String> {
        let secret = self.secret.as_ref()?;
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("any length is a key");
        mac.update(body);
        let mut text = "sha256=".to_string();
        for byte in mac.finalize().into_bytes() {
            let _ = write!(text, "{byte:02x}");
        }
        Some(text)
    }
}

/// Keeps owners and the operator told.
pub struct OwnersTold {
    pub cell: Cell,
    pub webhook: Webhook,
}

impl Pass for OwnersTold {
    const NAME: &'static str = "owners_told";
    const EVERY: Duration = Duration::from_millis(500);

    async fn pass(&mut self) -> Result<Next> {
        let state = self.cell.read();
        let due = fair(notice::due(&state, Timestamp::wall()));
        if due.is_empty() {
            return Ok(Next::Usual);
        }
        let reach = Arc::new(Reach { allow: self.webhook.allow.clone(), own: own(&state) });
        drop(state);
        let mut sending = JoinSet::new();
        for due in due {
            let (cell, webhook, reach) = (self.cell.clone(), self.webhook.clone(), reach.clone());
            sending.spawn(async move { tell(&cell, &webhook, &reach, due).await });
        }
        while let Some(done) = sending.join_next().await {
            done.map_err(|e| Error::internal("a notice was cut off").because(e))??;
        }
        Ok(Next::Again)
    }
}

/// What is sent in one go.
fn fair(due: Vec<Due>) -> Vec<Due> {
    let mut of = BTreeMap::<ProjectId, usize>::new();
    let mut may = |due: &Due| match due.notice.to {
        Receiver::Operator => true,
        Receiver::Owner(_) => {
            let sending = of.entry(due.project).or_default();
            *sending += 1;
            *sending <= PROJECT_MAX
        }
    };
    due.into_iter().filter(|due| may(due)).take(SENDING_MAX).collect()
}

/// What of the cloud has public addresses: external networks, and nodes.
fn own(state: &State) -> Vec<IpNet> {
    let networks = state.all::<Network>().filter(|n| n.is_external(state));
    let subnets = networks.flat_map(|n| state.by(&subnet::BY_NETWORK, n.id)).map(|s| s.cidr);
    subnets.chain(state.all::<Node>().map(|node| node.hello.address.into())).collect()
}

/// Sends one notice, and notes what became of it.
async fn tell(cell: &Cell, webhook: &Webhook, reach: &Reach, due: Due) -> Result<()> {
    let outcome = match sent(webhook, reach, &due).await {
        Ok(()) => Outcome::Answered,
        Err((outcome, error)) => {
            let (id, state) = (due.event, due.notice.stage.word());
            tracing::info!("maintenance event {id}, {state}: {}", error.chain());
            outcome
        }
    };
    let cause = Cause::step(OwnersTold::NAME);
    let about = due.clone();
    if cell.write(cause, move |tx| notice::tried(tx, &about, outcome)).await? {
        tracing::warn!("nobody was told that maintenance event {} is {}", due.event, due.notice.stage.word());
    }
    Ok(())
}

async fn sent(webhook: &Webhook, reach: &Reach, due: &Due) -> Result<(), (Outcome, Error)> {
    let useless = |error| (Outcome::Useless, error);
    let (url, reach) = match &due.notice.to {
        Receiver::Owner(text) => (Url::parse(text).map_err(useless)?, Some(reach)),
        Receiver::Operator => {
            let none = || Error::invalid("there is no webhook of the operator any more");
            (webhook.operator.clone().ok_or_else(none).map_err(useless)?, None)
        }
    };
    let body = Bytes::from(due.body.to_string());
    // An owner does not know the secret, and is not to show what it signs.
    let signature = reach.is_none().then(|| webhook.signature(&body)).flatten();
    let later = |error| (Outcome::Unanswered, error);
    send::post(&url, body, signature.as_deref(), reach, None).await.map_err(later)
}

#[cfg(test)]
mod tests;
