//! Which endpoints and endpoint groups a project is told of (OS-EP-FILTER).

use base::ProjectId;
use store::Tx;

pub(crate) fn forget_project(_tx: &mut Tx, _project: ProjectId) {}
