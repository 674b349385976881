//! One connection with its prepared statements, and what the ways in which it fails mean.

use std::collections::HashMap;
use tokio::task::AbortHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, NoTls, Row, RowStream, Statement};

pub type Param<'a> = &'a (dyn ToSql + Sync);

/// How an exchange failed.
pub enum Failed {
    /// It took too long; nobody knows whether it will still be carried out.
    Late,
    Server(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Server(error)
    }
}

impl Failed {
    pub fn no_table(&self) -> bool {
        matches!(self, Failed::Server(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE))
    }

    /// Another made it in the same moment.
    pub fn is_there(&self) -> bool {
        let there = [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_OBJECT];
        matches!(self, Failed::Server(error) if error.code().is_some_and(|code| there.contains(code)))
    }
}

/// Whether the connection is as good as before.
pub fn keeps_connection(error: &Error) -> bool {
    no_room(error) || error.code() == Some(&SqlState::UNDEFINED_TABLE)
}

pub fn no_room(error: &Error) -> bool {
    error.code() == Some(&SqlState::DISK_FULL)
}

/// Whether trying again cannot help: not for what passes (connections, signing in, conflicts, resources, shutting down, a server
/// that became a standby).
pub fn cannot_go_on(error: &Error) -> bool {
    const PASSES: [&str; 8] = ["08", "25", "28", "40", "53", "55", "57", "58"];
    error.code().is_some_and(|code| !PASSES.iter().any(|class| code.code().starts_with(class)))
}

pub fn chain(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => base::Error::internal("connection").because(error.to_string()).chain(),
    }
}

pub struct Session {
    client: Client,
    connection: AbortHandle,
    prepared: HashMap<&'static str, Statement>,
}

/// Without this the connection would wait for what the server still owes it.
impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    pub async fn connect(config: &Config) -> Result<Session, Error> {
        let (client, connection) = config.connect(NoTls).await?;
        let task = tokio::spawn(async move {
            // What went wrong is told to whoever waits for an answer.
            let _ = connection.await;
        });
        let session = Session { client, connection: task.abort_handle(), prepared: HashMap::new() };
        // What is answered is durable, whatever the database's default is.
        let setting = session.client.simple_query("SHOW synchronous_commit").await?;
        let off = setting
            .iter()
            .any(|m| matches!(m, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("off")));
        if off {
            session.client.batch_execute("SET synchronous_commit=on").await?;
        }
        Ok(session)
    }

    pub fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    async fn prepared(&mut self, text: &'static str) -> Result<Statement, Error> {
        if let Some(statement) = self.prepared.get(text) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(text).await?;
        self.prepared.insert(text, statement.clone());
        Ok(statement)
    }

    pub async fn run_all(&mut self, text: &str) -> Result<(), Error> {
        self.client.batch_execute(text).await
    }

    pub async fn run(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<u64, Error> {
        let statement = self.prepared(text).await?;
        self.client.execute(&statement, params).await
    }

    pub async fn one(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<Option<Row>, Error> {
        let statement = self.prepared(text).await?;
        self.client.query_opt(&statement, params).await
    }

    pub async fn all(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        let statement = self.prepared(text).await?;
        self.client.query(&statement, params).await
    }

    pub async fn rows(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<RowStream, Error> {
        let statement = self.prepared(text).await?;
        self.client.query_raw(&statement, params.iter().copied()).await
    }
}
