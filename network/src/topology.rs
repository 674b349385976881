//! The topology that a project gets by asking: a network with subnets of the default pools, behind a router to the default
//! external network. One transaction.

use crate::App;
use crate::network::Network;
use crate::resource::{self, Resource, Wanted};
use crate::router::{self, Router};
use crate::subnet::Subnet;
use crate::subnet_pool::{self, SubnetPool};
use api::{Call, Reply};
use base::{Context, Error, Id, ProjectId, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use store::{Index, Record, State, Tx};

/// What a project got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    pub project: ProjectId,
    pub network: Id<Network>,
    pub router: Id<Router>,
}

impl Record for Topology {
    const KIND: &'static str = "network_topology";
    type Key = ProjectId;
    const INDEXES: &'static [Index<Topology>] = &[];

    fn key(&self) -> ProjectId {
        self.project
    }
}

const NAME: &str = "auto_allocated";

fn lacks(what: &str) -> Error {
    Error::conflict(format!("Deployment error: {what}.")).named("AutoAllocationFailure")
}

/// The default external network and the default pools.
///
/// Errors: `Conflict` when an administrator has not named them.
fn needs(state: &State) -> Result<(Id<Network>, Vec<Arc<SubnetPool>>)> {
    let external = state.all::<Network>().find(|n| n.default && n.is_external(state));
    let external = external.ok_or_else(|| lacks("No default router:external network"))?;
    let pools: Vec<_> =
        [true, false].iter().filter_map(|v4| subnet_pool::default(state, *v4)).cloned().collect();
    match pools.is_empty() {
        true => Err(lacks("No default subnetpools defined")),
        false => Ok((external.id, pools)),
    }
}

/// The topology of a project; made now if it is not there.
///
/// Errors: `Conflict` when there are no defaults; `OverQuota`.
pub fn get(tx: &mut Tx, project: ProjectId) -> Result<Id<Network>> {
    if let Some(found) = tx.get::<Topology>(&project).filter(|t| tx.get::<Network>(&t.network).is_some()) {
        return Ok(found.network);
    }
    let (external, pools) = needs(tx)?;
    // Pools and the external network may be nobody's that the project sees.
    let cx = Context::system("auto-allocated topology");
    let network = Network::create(tx, &cx, project, &Wanted::parse(json!({"name": NAME}))?)?.id;
    let gateway = json!({"name": NAME, "external_gateway_info": {"network_id": external}});
    let router = Router::create(tx, &cx, project, &Wanted::parse(gateway)?)?;
    for pool in pools {
        let version = if pool.is_v4() { 4 } else { 6 };
        let new =
            json!({"name": NAME, "network_id": network, "ip_version": version, "subnetpool_id": pool.id});
        let subnet = Subnet::create(tx, &cx, project, &Wanted::parse(new)?)?;
        router::plug_subnet(tx, &cx, &router, subnet.id)?;
    }
    tx.put(Topology { project, network, router: router.id })?;
    Ok(network)
}

fn remove(tx: &mut Tx, project: ProjectId) -> Result<()> {
    let Some(found) = tx.get::<Topology>(&project).cloned() else { return Ok(()) };
    let cx = Context::system("auto-allocated topology");
    if let Some(router) = tx.get::<Router>(&found.router).cloned() {
        let ports: Vec<_> = router::interfaces(tx, router.id).cloned().collect();
        ports.iter().try_for_each(|port| router::unplug(tx, &router, port, None))?;
        Router::delete(tx, &cx, &router)?;
    }
    if let Some(network) = tx.get::<Network>(&found.network).cloned() {
        Network::delete(tx, &cx, &network)?;
    }
    tx.delete::<Topology>(&project);
    Ok(())
}

fn project(call: &Call) -> Result<ProjectId> {
    let text = call.param("project_id");
    let project = match text {
        "None" | "null" => call.cx.project(),
        id => id.parse().map_err(|_| Error::not_found("The project could not be found."))?,
    };
    match call.cx.sees(project) {
        true => Ok(project),
        false => Err(Error::forbidden("Not authorized.").named("NotAuthorized")),
    }
}

/// GET /auto-allocated-topology/{project_id}; with `fields=dry-run` only whether it could be.
pub async fn show(app: App, call: Call) -> Result<Reply> {
    let project = project(&call)?;
    let id = match call.query.all("fields").any(|f| f == "dry-run") {
        true => needs(&app.cell.read()).map(|_| "dry-run=pass".to_string())?,
        false => call.write(&app.cell, move |tx| get(tx, project)).await?.to_string(),
    };
    let mut view = json!({"id": id, "project_id": project, "tenant_id": project});
    if let Some(view) = view.as_object_mut().filter(|_| id != "dry-run=pass") {
        resource::select(&call, view);
    }
    Ok(Reply::ok(&json!({"auto_allocated_topology": view})))
}

/// DELETE /auto-allocated-topology/{project_id}
pub async fn delete(app: App, call: Call) -> Result<Reply> {
    let project = project(&call)?;
    call.write(&app.cell, move |tx| remove(tx, project)).await?;
    Ok(Reply::no_content())
}
