//! `tagfast serve`: a server process from its configuration to its last log line.
//!
//! Shutdown is a protocol: stop accepting, finish the requests in flight, stop the consumers, close
//! the store, flush the traces. Each step joins its tasks; the log names a task that still runs. A
//! second signal ends the process at once, which loses no acknowledged write.
//!
//! How it fails: a configuration that cannot be run, an address that is in use and a store that
//! does not open end the process with a message and a hint.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_api::ApiServices;
use tagfast_client::error::{CliError, CommandResult, Exit};
use tagfast_client::output::write_file;
use tagfast_client::signal::stop_signal;
use tagfast_client::terminal::Terminal;
use tagfast_resilience::SystemClock;
use tagfast_resilience::task::wait_until_ended;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cli::ServeArgs;
use crate::config::{
    AuthMode, Config, Override, PostgresConfig, Sources, env, load, machine_notes, without_effect,
};
use crate::demo;
use crate::machine::{self, MachineLimits};
use crate::node::cluster::ClusterNode;
use crate::node::embedded::EmbeddedNode;
use crate::node::roles::Roles;
use crate::telemetry::metrics::{Metrics, MetricsText};
use crate::telemetry::{self, trace};

/// How long tasks may take to end after their owners: the connections to the databases close.
const TASKS_END_TIMEOUT: Duration = Duration::from_secs(2);

/// The configuration with the flags of the command line.
///
/// # Errors
/// Every fault of the configuration, as one message.
pub(crate) fn configuration(args: &ServeArgs) -> Result<(Config, Sources), CliError> {
    let data_dir = args.data_dir.as_ref().map(|d| d.to_string_lossy().into_owned());
    let listen = args.listen.clone().map(Override::listen);
    let flags: Vec<Override> = listen.into_iter().chain(data_dir.map(Override::data_dir)).collect();
    let (mut config, sources) = load(args.config.as_deref(), &env::of_process(), &flags)
        .map_err(|e| CliError::config(&e))?;
    // A path need not be UTF-8, as the values of the configuration are.
    if let Some(data_dir) = &args.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    Ok((config, sources))
}

/// Runs the server until a signal ends it.
pub(crate) fn run(args: &ServeArgs, terminal: &Terminal) -> CommandResult {
    let roles = Roles::of(&args.role);
    let (mut config, sources) = configuration(args)?;
    if config.postgres.is_none() && roles != Roles::ALL {
        return Err(CliError::usage(format!(
            "--role {}: embedded mode runs all roles in one process",
            roles.names()
        ))
        .hint("leave --role out; roles can be apart with store.kind = \"postgres\""));
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.worker_threads {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().thread_name("tagfast-worker").build()?;
    let traces =
        runtime.block_on(async { telemetry::start(&config.log, &config.telemetry, terminal) })?;
    for note in machine_notes(&config) {
        tracing::warn!("{note}");
    }
    for key in without_effect(&sources) {
        tracing::warn!("{key} has no effect beside the other keys");
    }
    let metrics = Metrics::install()?;
    let machine_limits = machine::fit_connections(&mut config.api_limits.connections);
    let traced = traces.is_some();
    let server = Server { args, config: &config, machine_limits, traced, terminal };
    let result = runtime.block_on(server.run(roles, &metrics));
    // While the runtime still runs: the exporter's calls need it.
    if let Some(traces) = traces {
        traces.stop();
    }
    result
}

/// What a server is run with.
struct Server<'a> {
    args: &'a ServeArgs,
    config: &'a Config,
    machine_limits: MachineLimits,
    /// Whether traces are exported.
    traced: bool,
    terminal: &'a Terminal,
}

/// An open listener, and what ends it.
struct Endpoint {
    listener: TcpListener,
    started: Instant,
    stop: watch::Receiver<bool>,
}

impl Server<'_> {
    async fn run(&self, roles: Roles, metrics: &Metrics) -> CommandResult {
        let started = Instant::now();
        let stop = stop_signal()?;
        let listener = bind(self.config)?;
        metrics.watch_listener(listener.local_addr()?);
        let endpoint = Endpoint { listener, started, stop };
        let upkeep = metrics.start_upkeep();
        let text: MetricsText = {
            let metrics = metrics.clone();
            Arc::new(move || metrics.render())
        };
        let result = match &self.config.postgres {
            Some(postgres) => self.run_cluster(postgres, roles, endpoint, text).await,
            None => self.run_embedded(endpoint, text).await,
        };
        // Its panic is logged already.
        let _ = upkeep.stop().await;
        for (task, count) in wait_until_ended(TASKS_END_TIMEOUT).await {
            tracing::warn!(task, count, "a task still runs after the shutdown");
        }
        if result.is_ok() {
            tracing::info!("stopped");
        }
        result
    }

    async fn run_cluster(
        &self,
        postgres: &PostgresConfig,
        roles: Roles,
        endpoint: Endpoint,
        metrics: MetricsText,
    ) -> CommandResult {
        if self.args.demo {
            return Err(CliError::usage("--demo fills the embedded store")
                .hint("import into a cluster with `tagfast import FILE`"));
        }
        let clock = Arc::new(SystemClock);
        let node = ClusterNode::start(self.config, postgres, roles, clock, metrics).await?;
        let served = self.listen(node.parts(), endpoint).await;
        node.stop().await;
        served.map(|()| Exit::Done)
    }

    async fn run_embedded(&self, mut endpoint: Endpoint, metrics: MetricsText) -> CommandResult {
        let node = tokio::select! {
            node = EmbeddedNode::start(self.config, Arc::new(SystemClock), metrics) => node?,
            _ = endpoint.stop.wait_for(|stop| *stop) => return Ok(Exit::Done),
        };
        let served = self.demo_and_listen(&node, endpoint).await;
        node.stop().await;
        served.map(|()| Exit::Done)
    }

    async fn demo_and_listen(
        &self,
        node: &EmbeddedNode,
        mut endpoint: Endpoint,
    ) -> Result<(), CliError> {
        if self.args.demo && !self.load_demo(node, &mut endpoint).await? {
            return Ok(());
        }
        self.listen(node.parts(), endpoint).await
    }

    /// Loads the demo data and prints what to try. Returns false if a signal interrupted it.
    async fn load_demo(
        &self,
        node: &EmbeddedNode,
        endpoint: &mut Endpoint,
    ) -> Result<bool, CliError> {
        let Self { config, terminal, .. } = self;
        let store = node.store();
        let loading = demo::load_once(&store, &config.data_dir, &config.limits, terminal);
        let loaded = tokio::select! {
            loaded = loading => loaded?,
            _ = endpoint.stop.wait_for(|stop| *stop) => {
                terminal.note(
                    "interrupted; the demo data is loaded again at the next start with --demo",
                );
                return Ok(false);
            }
        };
        if let Some(demo::LoadSummary { contents, taggings }) = loaded {
            tracing::info!(contents, taggings, "demo data loaded");
        }
        let base = format!("http://{}", endpoint.listener.local_addr()?);
        // A closed stdout is no reason to stop serving.
        let _ = terminal.line(demo::hints(&base, config.auth_mode == AuthMode::Jwt));
        Ok(true)
    }

    /// Serves until a signal asks to stop and the requests in flight have ended.
    async fn listen(&self, mut parts: ApiServices, endpoint: Endpoint) -> Result<(), CliError> {
        let Endpoint { listener, started, mut stop } = endpoint;
        let address = listener.local_addr()?;
        let (tasks, budget) = (parts.tasks.clone(), parts.byte_budget.clone());
        parts.machine_limits.clone_from(&self.machine_limits);
        let mut router = tagfast_api::router(parts);
        if self.traced {
            router = router.layer(axum::middleware::from_fn(trace::span));
        }
        let base = format!("http://{address}");
        let ready_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            data_dir = %self.config.data_dir.display(),
            ready_ms,
            "listening on {base}"
        );
        if let Some(path) = &self.args.port_file {
            write_port(path, address.port())?;
        }
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let limits = self.config.api_limits.clone();
        tagfast_api::serve(listener, router, limits, &tasks, &budget, stopped)
            .await
            .map_err(|e| CliError::new(format!("serving {base} failed")).with_source(e))
    }
}

fn bind(config: &Config) -> Result<TcpListener, CliError> {
    let address = config.listen;
    machine::listen(address).map_err(|e| {
        let hint = if e.kind() == std::io::ErrorKind::AddrInUse {
            Some(
                "another program (a second tagfast?) listens there; --listen 127.0.0.1:0 takes a \
                 free port",
            )
        } else if e.kind() == std::io::ErrorKind::PermissionDenied {
            Some("ports below 1024 need privileges; choose a higher one with --listen")
        } else {
            None
        };
        let error = CliError::new(format!("cannot listen on {address}")).with_source(e);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })
}

/// Writes the port, so that a reader that waits for the file finds a whole number.
fn write_port(path: &Path, port: u16) -> Result<(), CliError> {
    write_file(path, format!("{port}\n").as_bytes()).map_err(|e| {
        CliError::new(format!("cannot write the port to {}", path.display())).with_source(e)
    })
}
