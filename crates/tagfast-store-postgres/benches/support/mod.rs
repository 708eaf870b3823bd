//! What benchmarks on a real cluster share.

use tagfast_store_postgres::{ClusterOptions, PostgresOptions};
use tagfast_testkit::stack::StackInfo;

/// The options of a store on a stack of one cluster.
pub(crate) fn options(info: &StackInfo, node: &str) -> PostgresOptions {
    let database = &info.database;
    PostgresOptions {
        node: node.to_owned(),
        ..PostgresOptions::new(
            vec![ClusterOptions::new("c0", "0-63")],
            info.etcd.iter().map(|etcd| etcd.url.clone()).collect(),
            database.name.clone(),
            database.user.clone(),
            std::fs::read_to_string(&database.password_file).expect("the password"),
        )
    }
}
