//! Dead letters of a cluster.
//!
//! | file | what it does |
//! |---|---|
//! | `store` | the dead-letter store |
//! | `statements` | its transactions |
//! | `leader_session` | the connection whose advisory lock elects the leader |
//! | `rows` | rows of dead letters and replay jobs |
//! | `sql` | filters and transitions as SQL |

mod leader_session;
mod rows;
mod sql;
mod statements;
mod store;

pub use store::PostgresDeadLetters;
