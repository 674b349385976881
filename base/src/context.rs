//! Who asks: made once per request by `api` from the token, and handed to every verb.

use crate::id::{DomainId, ProjectId, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Where a token is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    #[default]
    Unscoped,
    Project {
        project: ProjectId,
        domain: DomainId,
    },
    Domain(DomainId),
    System,
}

/// What a checked token says of its holder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Who {
    pub user: UserId,
    pub user_name: String,
    pub user_domain: DomainId,
    pub scope: Scope,
    /// Role names, implied ones included, lower case, sorted.
    pub roles: Vec<String>,
    /// The token's own id, by which it is revoked.
    pub audit: String,
    /// The token acts for another by a trust or application credential, and so may not mint more.
    pub delegated: bool,
}

/// A request in the eyes of a verb.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub who: Arc<Who>,
    /// `req-` and a UUID: the same in the answer's header, the log and the instance actions.
    pub request: Arc<str>,
    /// The policy rule of the route let this caller see and change other projects' things.
    pub everywhere: bool,
}

impl Context {
    /// The context of a loop or of the first start: no person, everything visible.
    pub fn system(name: &str) -> Context {
        let who = Who { user_name: name.into(), scope: Scope::System, ..Who::default() };
        Context { who: Arc::new(who), request: name.into(), everywhere: true }
    }

    /// The project that the token is scoped to; the zero id when it is not.
    pub fn project(&self) -> ProjectId {
        match self.who.scope {
            Scope::Project { project, .. } => project,
            Scope::Unscoped | Scope::Domain(_) | Scope::System => ProjectId::ZERO,
        }
    }

    pub fn user(&self) -> UserId {
        self.who.user
    }

    pub fn has_role(&self, role: &str) -> bool {
        self.who.roles.iter().any(|r| r == role)
    }

    /// Whether something of `project` may be seen at all; where not, it is `NotFound`.
    pub fn sees(&self, project: ProjectId) -> bool {
        self.everywhere || self.project() == project
    }
}
