//! A node's maintenance through the real router: who may, what becomes of the service and of each server, step by step.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use base::node::{Report, VmReport, VmState};
use base::{Id, Timestamp};
use compute::Server;
use compute::maintenance::notice::{self, Operator, Outcome, Receiver, TRIES_MAX};
use compute::maintenance::{BY_NODE, Event, Maintenance, Stage, drain, event_id};
use identity::testing::Person;
use serde_json::{Value, json};
use std::sync::Arc;
use store::Cause;
use support::{Ground, Whole, id};

const NODES: &str = "/maintenance/v1/nodes";
const NOVA: &str = "/compute/v2.1";

struct Scene {
    whole: Whole,
    admin: Person,
    member: Person,
    ground: Ground,
}

impl Scene {
    /// n2 takes no servers, so all come to n1.
    async fn new() -> Scene {
        let whole = Whole::new().await;
        let finalise = |tx: &mut store::Tx| store::format::finalise(tx);
        whole.cloud.cell.write(Cause::step("finalise"), finalise).await.unwrap();
        let (admin, member) = (whole.cloud.admin.clone(), whole.cloud.member("member").await);
        let ground = whole.ground(&member).await;
        let scene = Scene { whole, admin, member, ground };
        scene.enable("n2", json!({"status": "disabled", "disabled_reason": "spare"}), 200).await;
        scene
    }

    async fn service(&self, name: &str) -> Value {
        let path = format!("{NOVA}/os-services?host={name}");
        let (_, answer) = self.whole.at(&self.admin, "2.53", "GET", &path, Value::Null).await;
        answer["services"][0].clone()
    }

    async fn enable(&self, name: &str, change: Value, expect: u16) {
        let path = format!("{NOVA}/os-services/{}", id(&self.service(name).await));
        let (status, answer) = self.whole.at(&self.admin, "2.53", "PUT", &path, change).await;
        assert_eq!(status, expect, "{answer}");
    }

    async fn server(&self, name: &str) -> String {
        let new = self.ground.server(name);
        id(&self.whole.make(&self.member, &format!("{NOVA}/servers"), new).await)
    }

    async fn act(&self, server: &str, action: &str, expect: u16) -> Value {
        let path = format!("{NOVA}/servers/{server}/action");
        let (status, answer) = self.whole.ask(&self.member, "POST", &path, json!({action: null})).await;
        assert_eq!(status, expect, "{action}: {answer}");
        answer
    }

    async fn status(&self, server: &str) -> String {
        let path = format!("{NOVA}/servers/{server}");
        let (_, answer) = self.whole.ask(&self.member, "GET", &path, Value::Null).await;
        answer["server"]["status"].as_str().unwrap_or("gone").to_string()
    }

    /// The node does at once what it is told.
    async fn node_acts(&self) {
        let state = self.whole.cloud.cell.read();
        let mut report = Report { whole: true, ..Report::default() };
        for server in state.by(&compute::server::BY_HOST, "n1") {
            let on = server.desired == base::node::Power::On;
            let state = if on { VmState::Running } else { VmState::Stopped };
            if server.phase == compute::server::Phase::Settled {
                let seen = VmReport { state, reboots: server.reboots, fault: None, password: None };
                report.vms.insert(server.id.uuid(), seen);
            }
        }
        self.whole.fleet.report("n1", report).await.unwrap();
    }

    async fn drain(&self, name: &str, seconds: i64, expect: u16) -> Value {
        let deadline = Timestamp::wall().plus_secs(seconds).micros_zulu();
        let asked = json!({"drain": {"deadline": deadline, "reason": "new disks"}});
        let path = format!("{NODES}/{name}/drain");
        let (status, answer) = self.whole.ask(&self.admin, "POST", &path, asked).await;
        assert_eq!(status, expect, "{answer}");
        answer["maintenance"].clone()
    }

    async fn undrain(&self, expect: u16) -> Value {
        let path = format!("{NODES}/n1/undrain");
        let (status, answer) = self.whole.ask(&self.admin, "POST", &path, Value::Null).await;
        assert_eq!(status, expect, "{answer}");
        answer["maintenance"].clone()
    }

    /// What the server's own section says of maintenance.
    fn told(&self, server: &str) -> Option<base::node::Maintenance> {
        let state = self.whole.cloud.cell.read();
        let key = base::node::SectionKey::Vm(server.parse().unwrap());
        match &self.whole.fleet.document_at(&state, "n1").sections[&key] {
            base::node::Section::Vm(vm) => vm.maintenance.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The loop, until it has nothing to do.
    async fn carried_out(&self) {
        let step = |tx: &mut store::Tx| drain::step(tx, Operator::Told);
        while self.whole.cloud.cell.write(Cause::step("drains"), step).await.unwrap() {}
    }

    /// As if the time had come.
    async fn deadline_over(&self) {
        let write = |tx: &mut store::Tx| {
            let id = tx.by(&BY_NODE, "n1").find(|m| m.stage == Stage::Scheduled).unwrap().id;
            let now = tx.now();
            tx.update::<Maintenance>(&id, |m| m.deadline = now)?;
            Ok(())
        };
        self.whole.cloud.cell.write(Cause::step("time"), write).await.unwrap();
    }

    fn event(&self, maintenance: &Value, server: &str) -> Option<Arc<Event>> {
        let maintenance: Id<Maintenance> = id(maintenance).parse().unwrap();
        let server: Id<Server> = server.parse().unwrap();
        self.whole.cloud.cell.read().get::<Event>(&event_id(maintenance, server)).cloned()
    }

    fn stage(&self, maintenance: &Value, server: &str) -> Option<Stage> {
        self.event(maintenance, server).map(|event| event.stage)
    }
}

#[tokio::test]
async fn at_the_deadline_what_runs_is_stopped_and_at_the_end_it_alone_is_started() {
    let scene = Scene::new().await;
    let mut names = Vec::new();
    for n in 0..9 {
        names.push(scene.server(&format!("s{n}")).await);
    }
    let (stopped, deleted) = (names[0].clone(), names[1].clone());
    scene.node_acts().await;
    scene.enable("n2", json!({"status": "enabled"}), 200).await;
    let m = scene.drain("n1", 3600, 201).await;
    assert_eq!((&m["state"], &m["servers"], &m["running"]), (&json!("scheduled"), &json!(9), &json!(9)));
    let service = scene.service("n1").await;
    assert_eq!(service["status"], "disabled");
    assert_eq!(
        service["disabled_reason"],
        format!("Maintenance from {}: new disks", m["deadline"].as_str().unwrap())
    );
    // Nothing new comes here; who is here goes on.
    let elsewhere = scene.server("elsewhere").await;
    let host = |server: &str| {
        let id: Id<Server> = server.parse().unwrap();
        scene.whole.cloud.cell.read().get::<Server>(&id).unwrap().host.clone().unwrap()
    };
    assert_eq!(host(&elsewhere), "n2");
    scene.carried_out().await;
    assert!(names.iter().all(|name| scene.stage(&m, name) == Some(Stage::Scheduled)));
    assert_eq!(scene.event(&m, &elsewhere), None);
    assert_eq!(scene.status(&names[2]).await, "ACTIVE");

    // Asked again, it is what it was, whatever is said; the node is opened by its end alone.
    let again = scene.drain("n1", 7200, 200).await;
    assert_eq!((&again["id"], &again["deadline"]), (&m["id"], &m["deadline"]));
    scene.enable("n1", json!({"status": "enabled"}), 409).await;

    // Owners: one stops, one deletes, one reboots.
    scene.act(&stopped, "os-stop", 202).await;
    scene.node_acts().await;
    let path = format!("{NOVA}/servers/{deleted}");
    assert_eq!(scene.whole.ask(&scene.member, "DELETE", &path, Value::Null).await.0, 204);
    scene.deadline_over().await;
    scene.carried_out().await;
    scene.node_acts().await;
    for name in &names[2..] {
        assert_eq!(
            (scene.stage(&m, name), scene.status(name).await.as_str()),
            (Some(Stage::Started), "SHUTOFF")
        );
        assert!(scene.event(&m, name).unwrap().stopped);
    }
    assert!(!scene.event(&m, &stopped).unwrap().stopped);
    assert_eq!(scene.stage(&m, &deleted), Some(Stage::Scheduled), "it is gone");
    let (_, node) = scene.whole.ask(&scene.admin, "GET", &format!("{NODES}/n1"), Value::Null).await;
    assert_eq!((&node["node"]["servers"], &node["node"]["running"]), (&json!(8), &json!(0)), "{node}");
    // It is being worked on.
    let refused = scene.act(&stopped, "os-start", 409).await;
    assert!(refused.to_string().contains("its host is in maintenance since"), "{refused}");
    let reboot = json!({"reboot": {"type": "HARD"}});
    let path = format!("{NOVA}/servers/{stopped}/action");
    assert_eq!(scene.whole.ask(&scene.member, "POST", &path, reboot).await.0, 409);

    let ended = scene.undrain(200).await;
    assert_eq!((&ended["state"], &ended["stopped"]), (&json!("completed"), &json!(7)));
    let service = scene.service("n1").await;
    assert_eq!((&service["status"], &service["disabled_reason"]), (&json!("enabled"), &Value::Null));
    scene.undrain(409).await;
    scene.carried_out().await;
    scene.node_acts().await;
    for name in &names[2..] {
        assert_eq!(scene.status(name).await, "ACTIVE");
    }
    assert_eq!(scene.status(&stopped).await, "SHUTOFF", "its owner stopped it");
    // The operator is told of each server's three stages, of the deleted one's first, and then it is closed.
    assert_eq!(scene.tell(|_| Outcome::Answered).await.len(), 8 * 3 + 1);
    scene.carried_out().await;
    let state = scene.whole.cloud.cell.read();
    assert_eq!(state.count::<Event>(), 0, "nothing is left to be done");
    assert!(state.all::<Maintenance>().all(|m| m.closed && m.stage == Stage::Completed));
    scene.act(&stopped, "os-start", 202).await;
}

#[tokio::test]
async fn a_drain_that_ends_before_its_deadline_touches_no_server() {
    let scene = Scene::new().await;
    let server = scene.server("s").await;
    scene.node_acts().await;
    let m = scene.drain("n1", 3600, 201).await;
    // At once: no step was taken yet.
    let told = scene.told(&server).unwrap();
    assert_eq!((told.started, told.reason.as_str()), (false, "new disks"));
    scene.carried_out().await;
    assert_eq!(scene.told(&server).as_ref(), Some(&told));
    assert_eq!(scene.event(&m, &server).unwrap().id.uuid(), told.event);
    assert_eq!(scene.undrain(200).await["state"], "cancelled");
    assert_eq!(scene.told(&server), None);
    scene.deadline_never_comes().await;
    scene.tell(|_| Outcome::Answered).await;
    scene.carried_out().await;
    assert_eq!((scene.status(&server).await.as_str(), scene.stage(&m, &server)), ("ACTIVE", None));
    // The next one is another.
    let next = scene.drain("n1", 3600, 201).await;
    assert_ne!(next["id"], m["id"]);
}

#[tokio::test]
async fn a_node_is_patched_with_what_its_guests_are_told() {
    let scene = Scene::new().await;
    let server = scene.server("s").await;
    let fleet = scene.whole.fleet.clone();
    let follower = fleet.clone();
    let following = tokio::spawn(async move { follower.follow().await });
    let key = base::node::SectionKey::Vm(server.parse().unwrap());
    let mut document = base::node::Document::default();
    // What the node knows at last, when it waits for what is to come.
    for active in [false, true, false] {
        match active {
            true => drop(scene.drain("n1", 3600, 201).await),
            false if document.sections.is_empty() => {}
            false => drop(scene.undrain(200).await),
        }
        let told = |document: &base::node::Document| match document.sections.get(&key) {
            Some(base::node::Section::Vm(vm)) => vm.maintenance.is_some() == active,
            _ => false,
        };
        let begin = std::time::Instant::now();
        while !told(&document) {
            assert!(begin.elapsed().as_secs() < 30, "{active}: {document:?}");
            let patch = fleet.document("n1", document.generation, std::time::Duration::from_secs(1)).await;
            document.patch(patch.unwrap());
        }
        assert_eq!(document.sections, fleet.document_at(&scene.whole.cloud.cell.read(), "n1").sections);
    }
    following.abort();
}

#[tokio::test]
async fn one_stops_and_the_next_may_begin_before_the_first_has_started_what_it_stopped() {
    let scene = Scene::new().await;
    let server = scene.server("s").await;
    scene.node_acts().await;
    scene.drain("n1", 3600, 201).await;
    scene.deadline_over().await;
    scene.carried_out().await;
    scene.undrain(200).await;
    let second = scene.drain("n1", 3600, 201).await;
    scene.deadline_over().await;
    scene.carried_out().await;
    scene.node_acts().await;
    // The first gave it back, so the second stopped it, and gives it back, too.
    assert!(scene.event(&second, &server).unwrap().stopped);
    scene.undrain(200).await;
    scene.carried_out().await;
    scene.node_acts().await;
    assert_eq!(scene.status(&server).await, "ACTIVE");
}

#[tokio::test]
async fn each_receiver_is_told_of_each_stage_in_order_until_it_answers_or_the_tries_are_over() {
    let scene = Scene::new().await;
    let (named, deleted) = (scene.server("named").await, scene.server("deleted").await);
    let owner = |url: &str| json!({"metadata": {"maintenance_webhook": url}});
    for server in [&named, &deleted] {
        let path = format!("{NOVA}/servers/{server}/metadata");
        assert_eq!(scene.whole.ask(&scene.member, "POST", &path, owner("https://a.example/x")).await.0, 200);
    }
    scene.node_acts().await;
    let m = scene.drain("n1", 3600, 201).await;
    scene.carried_out().await;
    let waiting = || notice::due(&scene.whole.cloud.cell.read(), Timestamp::wall().plus_secs(86_400));
    let first = waiting();
    assert_eq!(first.len(), 4);
    let event = scene.event(&m, &named).unwrap();
    let told = first.iter().find(|d| d.event == event.id && d.notice.to != Receiver::Operator).unwrap();
    assert_eq!(told.notice.to, Receiver::Owner("https://a.example/x".into()));
    let member = &scene.member;
    let body = json!({
        "id": event.id, "type": "maintenance", "state": "scheduled", "code": "instance-stop",
        "server": {"id": named, "name": "named"}, "project_id": member.project, "user_id": member.user,
        "not_before": m["deadline"], "not_after": null, "reason": "new disks", "time": told.notice.made.zulu(),
    });
    assert_eq!(told.body, body);
    assert!(!told.body.to_string().contains("n1"), "whose node it is, is nobody's");

    // A server that is gone is told of once, and what its owner was to be told is not lost.
    let path = format!("{NOVA}/servers/{deleted}");
    assert_eq!(scene.whole.ask(member, "DELETE", &path, Value::Null).await.0, 204);
    scene.node_acts().await;
    // Not answered: the next stage waits behind it, and the next try is later.
    assert_eq!(scene.tell_once(|_| Outcome::Unanswered).await.len(), 4);
    assert!(notice::due(&scene.whole.cloud.cell.read(), Timestamp::wall().plus_secs(-1)).is_empty());
    scene.deadline_over().await;
    scene.carried_out().await;
    assert_eq!(waiting().iter().map(|d| d.notice.stage).collect::<Vec<_>>(), [Stage::Scheduled; 4]);
    // The owner's receiver never answers, the operator's does.
    let operator = |to: &Receiver| match to {
        Receiver::Operator => Outcome::Answered,
        Receiver::Owner(_) => Outcome::Unanswered,
    };
    let said = scene.tell(operator).await;
    let tries = |to: &str, stage: Stage| {
        said.iter().filter(|(e, r, s)| *e == event.id && r.starts_with(to) && *s == stage).count()
    };
    assert_eq!((tries("operator", Stage::Scheduled), tries("operator", Stage::Started)), (1, 1));
    // One was before.
    let most = TRIES_MAX as usize;
    assert_eq!((tries("owner", Stage::Scheduled), tries("owner", Stage::Started)), (most - 1, most));
    scene.undrain(200).await;
    scene.carried_out().await;
    // A URL that is none is given up at once.
    scene.tell(|_| Outcome::Useless).await;
    scene.carried_out().await;
    let state = scene.whole.cloud.cell.read();
    let ended = state.all::<Maintenance>().next().unwrap();
    // Of the owners: two stages and the end of one, the first stage of the other; and the operator's end.
    assert_eq!((ended.closed, ended.untold, state.count::<Event>()), (true, 3 + 1 + 1, 0));
}

#[tokio::test]
async fn a_service_that_was_disabled_before_stays_so() {
    let scene = Scene::new().await;
    scene.enable("n1", json!({"status": "disabled", "disabled_reason": "mine"}), 200).await;
    scene.drain("n1", 3600, 201).await;
    scene.undrain(200).await;
    let service = scene.service("n1").await;
    assert_eq!((&service["status"], &service["disabled_reason"]), (&json!("disabled"), &json!("mine")));
}

#[tokio::test]
async fn a_node_that_leaves_the_cloud_ends_its_maintenance() {
    let scene = Scene::new().await;
    scene.drain("n1", 3600, 201).await;
    let path = format!("{NOVA}/os-services/{}", id(&scene.service("n1").await));
    assert_eq!(scene.whole.at(&scene.admin, "2.53", "DELETE", &path, Value::Null).await.0, 204);
    scene.carried_out().await;
    assert!(scene.whole.cloud.cell.read().all::<Maintenance>().all(|m| m.closed));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_who_may_not_is_refused() {
    let whole = Whole::new().await;
    let (admin, member) = (whole.cloud.admin.clone(), whole.cloud.member("member").await);
    let at = |seconds: i64| Timestamp::wall().plus_secs(seconds).micros_zulu();
    let drain = |node: &'static str, what: Value| {
        let (whole, admin) = (&whole, &admin);
        async move {
            let path = format!("{NODES}/{node}/drain");
            let (status, answer) = whole.ask(admin, "POST", &path, json!({"drain": what})).await;
            (status, answer.to_string())
        }
    };
    // A version that does not know these records may come back.
    let (status, why) = drain("n1", json!({"deadline": at(60)})).await;
    assert!(status == 409 && why.contains("format 2") && why.contains("plane finalise"), "{why}");
    let finalise = |tx: &mut store::Tx| store::format::finalise(tx);
    whole.cloud.cell.write(Cause::step("finalise"), finalise).await.unwrap();

    for (what, expect) in [
        (json!({"deadline": at(-1)}), "is not within the next 30 days"),
        (json!({"deadline": at(31 * 86_400)}), "is not within the next 30 days"),
        (json!({"deadline": "soon"}), "'soon' is not an ISO 8601 time"),
        (json!({}), "deadline"),
        (json!({"deadline": at(60), "until": at(30)}), "comes after its deadline"),
        (json!({"deadline": at(60), "reason": ""}), "at most 200 characters"),
        (json!({"deadline": at(60), "reason": "a\nb"}), "at most 200 characters"),
        (json!({"deadline": at(60), "reason": "x".repeat(201)}), "at most 200 characters"),
        (json!({"deadline": at(60), "force": true}), "force"),
    ] {
        let (status, why) = drain("n1", what.clone()).await;
        assert!(status == 400 && why.contains(expect), "{what}: {status} {why}");
    }
    assert_eq!(drain("n9", json!({"deadline": at(60)})).await.0, 404);
    assert_eq!(whole.ask(&admin, "POST", &format!("{NODES}/n9/undrain"), Value::Null).await.0, 404);
    for (method, path) in [
        ("GET", NODES.to_string()),
        ("GET", format!("{NODES}/n1")),
        ("POST", format!("{NODES}/n1/drain")),
        ("POST", format!("{NODES}/n1/undrain")),
    ] {
        let body = json!({"drain": {"deadline": at(60)}});
        let body = if method == "POST" { body } else { Value::Null };
        assert_eq!(whole.ask(&member, method, &path, body).await.0, 403, "{method} {path}");
    }
    assert_eq!(whole.cloud.cell.read().count::<Maintenance>(), 0);
}

impl Scene {
    /// Sends what is to be sent, whenever that is; what was said.
    async fn tell_once(&self, outcome: impl Fn(&Receiver) -> Outcome) -> Vec<(Id<Event>, String, Stage)> {
        let due = notice::due(&self.whole.cloud.cell.read(), Timestamp::wall().plus_secs(86_400));
        for due in &due {
            let (about, outcome) = (due.clone(), outcome(&due.notice.to));
            let write = move |tx: &mut store::Tx| notice::tried(tx, &about, outcome);
            self.whole.cloud.cell.write(Cause::step("told"), write).await.unwrap();
        }
        let to = |due: &notice::Due| match &due.notice.to {
            Receiver::Operator => "operator".to_string(),
            Receiver::Owner(url) => format!("owner {url}"),
        };
        due.iter().map(|due| (due.event, to(due), due.notice.stage)).collect()
    }

    /// The same until there is nothing.
    async fn tell(&self, outcome: impl Fn(&Receiver) -> Outcome) -> Vec<(Id<Event>, String, Stage)> {
        let mut said = Vec::new();
        loop {
            let more = self.tell_once(&outcome).await;
            if more.is_empty() {
                return said;
            }
            said.extend(more);
        }
    }

    /// What is over does not start.
    async fn deadline_never_comes(&self) {
        let write = |tx: &mut store::Tx| {
            let ids: Vec<_> = tx.all::<Maintenance>().map(|m| m.id).collect();
            let now = tx.now();
            for id in ids {
                tx.update::<Maintenance>(&id, |m| m.deadline = now)?;
            }
            Ok(())
        };
        self.whole.cloud.cell.write(Cause::step("time"), write).await.unwrap();
        self.carried_out().await;
    }
}
