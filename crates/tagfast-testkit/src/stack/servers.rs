//! Starts the servers of one process each: Redis, Kafka, OpenSearch.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::auth::USER;
use super::host::{Process, RunAs, find_program, run, wait_until};
use super::install::Tools;
use crate::http::Client;

fn strings<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_owned).to_vec()
}

/// Starts a Redis. With `evicts` a full server evicts keys with a TTL, else it refuses writes. It
/// asks for a password if there is one.
pub(super) fn redis(
    run_as: RunAs,
    dir: &Path,
    listen: SocketAddr,
    evicts: bool,
    password: Option<&str>,
) -> Result<Process> {
    run_as.make_dir(dir)?;
    let program = find_program("redis-server").context("redis-server is not installed")?;
    let (ip, port) = (listen.ip().to_string(), listen.port().to_string());
    let policy = if evicts { "volatile-lru" } else { "noeviction" };
    let mut args = strings([
        "--bind",
        &ip,
        "--port",
        &port,
        "--dir",
        ".",
        "--save",
        "",
        "--appendonly",
        "no",
        "--maxmemory",
        "256mb",
        "--maxmemory-policy",
        policy,
        // Otherwise it refuses clients that come from a network namespace.
        "--protected-mode",
        "no",
    ]);
    if let Some(password) = password {
        args.extend(strings(["--requirepass", password]));
    }
    let process = run_as.start("redis", dir, None, &program, &args)?;
    wait_until("Redis's start", Duration::from_secs(10), || {
        std::net::TcpStream::connect(listen).context("Redis does not listen")
    })?;
    Ok(process)
}

/// A broker's listener that asks for nothing, and the service's password at the other one.
pub(super) type KafkaAuth<'a> = (SocketAddr, &'a str);

/// Starts a Kafka broker (KRaft) that clients reach at `advertised`.
pub(super) fn kafka(
    tools: &Tools,
    run_as: RunAs,
    dir: &Path,
    [listen, controller, advertised]: [SocketAddr; 3],
    partitions: u16,
    auth: Option<KafkaAuth<'_>>,
) -> Result<Process> {
    run_as.make_dir(dir)?;
    let config = dir.join("server.properties");
    let clients = match auth {
        None => format!(
            "listeners=PLAINTEXT://{listen},CONTROLLER://{controller}\n\
             advertised.listeners=PLAINTEXT://{advertised}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
        ),
        Some((admin, _)) => format!(
            "listeners=SASL_PLAINTEXT://{listen},PLAINTEXT://{admin},CONTROLLER://{controller}\n\
             advertised.listeners=SASL_PLAINTEXT://{advertised},PLAINTEXT://{admin}\n\
             inter.broker.listener.name=PLAINTEXT\nsasl.enabled.mechanisms=SCRAM-SHA-256\n\
             listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;\n"
        ),
    };
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.bootstrap.servers={controller}\n\
         {clients}controller.listener.names=CONTROLLER\n\
         log.dirs={}\nnum.partitions={partitions}\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=8\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=false\n",
        dir.join("data").display()
    );
    run_as.write(&config, &text)?;
    let java = find_program("java").context("java is not installed")?;
    let jars = format!("{}/*", tools.kafka().join("libs").display());
    let tool = |arguments: &[&str]| {
        let mut command = run_as.command(&java);
        command
            .current_dir(dir)
            .args(["-Xmx128m", "-cp", &jars, "kafka.tools.StorageTool"])
            .args(arguments);
        run(&mut command)
    };
    let printed = tool(&["random-uuid"])?;
    let id = printed.lines().last().unwrap_or_default().trim().to_owned();
    let config = config.display().to_string();
    let mut format = vec!["format", "--standalone", "-t", &id, "-c", &config];
    let user = auth.map(|(_, password)| format!("SCRAM-SHA-256=[name={USER},password={password}]"));
    if let Some(user) = &user {
        format.extend(["--add-scram", user]);
    }
    tool(&format)?;
    let args = strings([
        "-Xms256m",
        "-Xmx384m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        &jars,
        "kafka.Kafka",
        "server.properties",
    ]);
    let process = run_as.start("kafka", dir, None, &java, &args)?;
    let log = dir.join("kafka.log");
    wait_for_server("Kafka", process, &log, || {
        let text = std::fs::read_to_string(&log)?;
        text.contains("Kafka Server started").then_some(()).context("Kafka is starting")
    })?;
    Ok(process)
}

/// Starts OpenSearch as one node.
pub(super) fn opensearch(
    tools: &Tools,
    run_as: RunAs,
    dir: &Path,
    [listen, transport]: [SocketAddr; 2],
) -> Result<Process> {
    run_as.make_dir(dir)?;
    for folder in ["config", "data", "logs", "tmp"] {
        run_as.make_dir(&dir.join(folder))?;
    }
    let home = tools.opensearch();
    for entry in std::fs::read_dir(home.join("config"))?.flatten().filter(|e| e.path().is_file()) {
        // The log of the garbage collector would go to a folder that this user cannot write.
        let text = std::fs::read_to_string(entry.path())?;
        let text: String = text
            .lines()
            .filter(|line| !line.contains("logs/"))
            .map(|line| format!("{line}\n"))
            .collect();
        run_as.write(&dir.join("config").join(entry.file_name()), &text)?;
    }
    let config = format!(
        "cluster.name: tagfast\nnode.name: os0\ndiscovery.type: single-node\nnetwork.host: {}\nhttp.port: {}\n\
         transport.port: {}\npath.data: {dir}/data\npath.logs: {dir}/logs\naction.auto_create_index: false\n\
         cluster.routing.allocation.disk.threshold_enabled: false\n",
        listen.ip(),
        listen.port(),
        transport.port(),
        dir = dir.display()
    );
    run_as.write(&dir.join("config/opensearch.yml"), &config)?;
    let java = find_program("java").context("java is not installed")?;
    let java = std::fs::canonicalize(java)?;
    let java_home = java.parent().and_then(Path::parent).context("java has no home")?;
    let environment = strings([
        &format!("OPENSEARCH_JAVA_HOME={}", java_home.display()),
        &format!("OPENSEARCH_PATH_CONF={}", dir.join("config").display()),
        &format!("OPENSEARCH_TMPDIR={}", dir.join("tmp").display()),
        "OPENSEARCH_JAVA_OPTS=-Xms512m -Xmx512m",
        &home.join("bin/opensearch").display().to_string(),
    ]);
    let process = run_as.start("opensearch", dir, None, Path::new("/usr/bin/env"), &environment)?;
    wait_for_server("OpenSearch", process, &dir.join("opensearch.log"), || {
        http_ok(listen, "/_cluster/health")
    })?;
    Ok(process)
}

/// Waits until a server is ready, or has ended.
fn wait_for_server(
    name: &str,
    process: Process,
    log: &Path,
    mut ready: impl FnMut() -> Result<()>,
) -> Result<()> {
    let running = wait_until(&format!("{name}'s start"), Duration::from_secs(90), || {
        if process.is_alive() { ready().map(|()| true) } else { Ok(false) }
    })?;
    if !running {
        bail!("{name} ended; see {}", log.display());
    }
    Ok(())
}

pub(super) fn http_ok(address: SocketAddr, path: &str) -> Result<()> {
    let mut client = Client::new(address).with_timeout(Duration::from_secs(2));
    let answer = client.request("GET", path, &[], None)?;
    if answer.status != 200 {
        bail!("{address}{path} answered {}", answer.status);
    }
    Ok(())
}
