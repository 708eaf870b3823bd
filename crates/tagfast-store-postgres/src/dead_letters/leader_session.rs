//! The connection to the primary through which dead letters are read and changed, and the leader
//! election of the replayers: the process whose session holds the advisory lock leads.
//!
//! How it fails: a connection that failed is dropped, and the lock with it; the next call opens a
//! new one. PostgreSQL ends the session of a process that stands still, so that a different process
//! can lead.

use std::sync::Arc;

use tagfast_events::DeadLetterStoreError;
use tagfast_sharding::{ContentHash, LogicalShard};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;
use crate::store::PostgresStore;

/// Held by the session of the leader.
const LEADER_LOCK: i64 = crate::locks::DEAD_LETTER_LEADER;
/// The leader shows every second that it lives; a silent session is ended.
const SET_IDLE_SESSION_TIMEOUT: &str = "SET idle_session_timeout = '10s'";

/// A session on the primary.
struct Session {
    address: String,
    connection: Connection,
    leads: bool,
}

/// The session, opened when it is needed.
pub(super) struct LeaderSession {
    store: Arc<PostgresStore>,
    /// `None` before the first call and after a failure.
    session: Mutex<Option<Session>>,
}

/// Exclusive use of the session.
pub(super) struct LeaderSessionGuard<'a>(MutexGuard<'a, Option<Session>>);

impl LeaderSession {
    pub(super) fn new(store: Arc<PostgresStore>) -> Self {
        Self { store, session: Mutex::new(None) }
    }

    /// Waits for exclusive use of the session; opens one on the current primary of shard 0's
    /// cluster if needed.
    pub(super) async fn acquire(&self) -> Result<LeaderSessionGuard<'_>, DeadLetterStoreError> {
        let parts = self.store.cluster(LogicalShard::of_hash(ContentHash(0)));
        let until = Instant::now() + limit::READ_TIMEOUT;
        let unavailable = |reason: String| DeadLetterStoreError::unavailable(reason);
        let no_primary = || unavailable(format!("cluster {} has no primary", parts.cluster.name));
        let (_, node) = parts.cluster.primary(until).await.ok_or_else(no_primary)?;
        let locked = tokio::time::timeout(2 * limit::COMMIT_TIMEOUT, self.session.lock()).await;
        let mut session = locked.map_err(|_| unavailable("its connection is busy".to_owned()))?;
        if session
            .as_ref()
            .is_none_or(|s| s.address != node.address || s.connection.client.is_closed())
        {
            let opened = self.store.connections.open(&node.address, "dead letters").await;
            let connection = opened.map_err(DeadLetterStoreError::unavailable)?;
            let set_up = connection.client.batch_execute(SET_IDLE_SESSION_TIMEOUT);
            let set_up = within("a session's set-up", limit::COMMIT_TIMEOUT, set_up).await;
            set_up.map_err(DeadLetterStoreError::unavailable)?;
            *session = Some(Session { address: node.address, connection, leads: false });
        }
        Ok(LeaderSessionGuard(session))
    }
}

impl LeaderSessionGuard<'_> {
    /// The client.
    pub(super) fn client(&mut self) -> Result<&mut Client, DeadLetterStoreError> {
        let session = self.0.as_mut();
        let session =
            session.ok_or_else(|| DeadLetterStoreError::unavailable("the connection is gone"))?;
        Ok(&mut session.connection.client)
    }

    /// Passes a result on; drops the session if it failed.
    pub(super) fn finish<T>(
        mut self,
        result: Result<T, PgError>,
    ) -> Result<T, DeadLetterStoreError> {
        result.map_err(|error| {
            *self.0 = None;
            DeadLetterStoreError::unavailable(error)
        })
    }

    /// Takes the leader lock, or verifies that the session still has it; returns whether it leads.
    pub(super) async fn try_lead(mut self) -> Result<bool, DeadLetterStoreError> {
        let known = self.0.as_ref().is_some_and(|session| session.leads);
        // The leader must not take the lock again: each call would need an unlock of its own. A
        // query is enough, because a session that PostgreSQL ended fails it.
        let client = self.client()?;
        let query = async {
            let row = if known {
                client.query_one("SELECT true", &[]).await
            } else {
                client.query_one("SELECT pg_try_advisory_lock($1)", &[&LEADER_LOCK]).await
            };
            row.map(|row| row.get::<_, bool>(0))
        };
        let leads = within("the leader lock", limit::COMMIT_TIMEOUT, query).await;
        if let (Ok(leads), Some(session)) = (&leads, self.0.as_mut()) {
            session.leads = *leads;
        }
        self.finish(leads)
    }
}
