//! TLS certificates of a stack: its own authority, and one certificate for all PostgreSQL nodes.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;

use super::host::{RunAs, run};

/// Creates `ca.pem`, `server.pem` and `server.key` in a folder. The certificate names the proxy's
/// address, where clients reach the nodes.
pub(super) fn make(run_as: RunAs, dir: &Path, ip: IpAddr) -> Result<()> {
    run_as.make_dir(dir)?;
    let names = dir.join("names");
    run_as.write(&names, &format!("subjectAltName=IP:{ip},DNS:localhost\n"))?;
    let openssl = |words: &str| {
        let mut command = run_as.command("openssl");
        run(command.args(words.split(' ')).current_dir(dir)).map(drop)
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -days 3650 -subj /CN=tagfast-stack -keyout ca.key -out ca.pem"
    ))?;
    openssl(&format!("req {key} -subj /CN=postgres -keyout server.key -out server.csr"))?;
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out server.pem",
    )
}
