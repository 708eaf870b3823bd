//! Clock, deadline and backoff: waiting that can be tested with virtual time.
