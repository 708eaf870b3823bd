//! `tagfast serve`: a server process from its configuration to its last log line.
//!
//! Shutdown is a protocol: stop accepting, finish the requests in flight, stop the consumers, close
//! the store, flush the traces. A second signal ends the process at once, which loses nothing
//! acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tagfast_api::ApiParts;
use tagfast_resilience::SystemClock;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::ServeArgs;
use crate::cluster::ClusterNode;
use crate::compose::Embedded;
use crate::config::{AuthMode, Config, Override, Sources, env, load};
use crate::demo;
use crate::failure::{CommandResult, Exit, Failure};
use crate::roles::Roles;
use crate::telemetry::{self, metrics::Metrics, trace};
use crate::term::Term;

/// The configuration that the flags ask for.
pub fn configuration(args: &ServeArgs) -> Result<(Config, Sources), Failure> {
    let data_dir = args.data_dir.as_ref().map(|d| d.to_string_lossy().into_owned());
    let flags: Vec<Override> = [
        (("server", "listen"), "--listen", args.listen.clone()),
        (("store", "data_dir"), "--data-dir", data_dir),
    ]
    .into_iter()
    .filter_map(|(path, flag, value)| Some(Override { path, flag, value: value? }))
    .collect();
    load(args.config.as_deref(), &env::of_process(), &flags).map_err(|e| Failure::config(&e))
}

/// Runs the server until a signal ends it.
pub fn run(args: &ServeArgs, term: &Term) -> CommandResult {
    let roles = Roles::of(&args.role)?;
    let (config, _) = configuration(args)?;
    if config.postgres.is_none() && roles != Roles::ALL {
        return Err(Failure::usage(format!(
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
    let traces = runtime.block_on(async { telemetry::start(&config.log, &config.telemetry) })?;
    let metrics = Metrics::install()?;
    let result = runtime.block_on(serve(args, &config, roles, metrics, traces.is_some(), term));
    // While the runtime still runs: the exporter's calls need it.
    if let Some(traces) = traces {
        traces.stop();
    }
    result
}

async fn serve(
    args: &ServeArgs,
    config: &Config,
    roles: Roles,
    metrics: Metrics,
    traced: bool,
    term: &Term,
) -> CommandResult {
    let started = Instant::now();
    let mut stop = stop_signal()?;
    let listener = bind(config).await?;
    let address = listener.local_addr()?;
    tokio::spawn(metrics.clone().upkeep());
    let text = Arc::new(move || metrics.render());
    if let Some(postgres) = &config.postgres {
        if args.demo {
            return Err(Failure::usage("--demo fills the embedded store".to_owned())
                .hint("import into a cluster with `tagfast import FILE`"));
        }
        let node = ClusterNode::start(config, postgres, roles, Arc::new(SystemClock), text).await?;
        let served = listen(args, config, node.parts(), listener, traced, started, stop).await;
        node.stop().await;
        served?;
        tracing::info!("stopped");
        return Ok(Exit::Done);
    }
    let embedded = tokio::select! {
        embedded = Embedded::start(config, Arc::new(SystemClock), text) => embedded?,
        _ = stop.wait_for(|stop| *stop) => return Ok(Exit::Done),
    };
    if args.demo {
        let store = embedded.store();
        let loading = demo::load_once(&store, &config.data_dir, &config.limits, term);
        let loaded = tokio::select! {
            loaded = loading => loaded,
            _ = stop.wait_for(|stop| *stop) => {
                term.note("interrupted; the demo data is loaded again at the next start with --demo");
                drop(store);
                embedded.stop().await;
                return Ok(Exit::Done);
            }
        };
        match loaded {
            Ok(Some(loaded)) => {
                tracing::info!(
                    contents = loaded.contents,
                    taggings = loaded.taggings,
                    "demo data loaded"
                );
            }
            Ok(None) => {}
            Err(failure) => {
                drop(store);
                embedded.stop().await;
                return Err(failure);
            }
        }
    }
    if args.demo {
        // A closed stdout is no reason to stop serving.
        let _ =
            term.line(demo::hints(&format!("http://{address}"), config.auth_mode == AuthMode::Jwt));
    }
    let served = listen(args, config, embedded.parts(), listener, traced, started, stop).await;
    embedded.stop().await;
    served?;
    tracing::info!("stopped");
    Ok(Exit::Done)
}

/// Serves until asked to stop and the requests in flight have ended.
async fn listen(
    args: &ServeArgs,
    config: &Config,
    parts: ApiParts,
    listener: TcpListener,
    traced: bool,
    started: Instant,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let address = listener.local_addr()?;
    let mut router = tagfast_api::router(parts);
    if traced {
        router = router.layer(axum::middleware::from_fn(trace::span));
    }
    let base = format!("http://{address}");
    let ready_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), data_dir = %config.data_dir.display(), ready_ms, "listening on {base}");
    if let Some(path) = &args.port_file {
        write_port(path, address.port())?;
    }
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let served = tagfast_api::serve(listener, router, config.api_limits.clone(), stopped).await;
    served.map_err(|e| Failure::new(format!("serving {base} failed: {e}")))
}

async fn bind(config: &Config) -> Result<TcpListener, Failure> {
    let address = config.listen;
    TcpListener::bind(address).await.map_err(|e| {
        let failure = Failure::new(format!("cannot listen on {address}: {e}"));
        if e.kind() == std::io::ErrorKind::AddrInUse {
            return failure
                .hint("another program (a second tagfast?) listens there; --listen 127.0.0.1:0 takes a free port");
        }
        if e.kind() == std::io::ErrorKind::PermissionDenied {
            return failure.hint("ports below 1024 need privileges; choose a higher one with --listen");
        }
        failure
    })
}

/// Becomes true at the first SIGINT or SIGTERM; the second one ends the process.
pub fn stop_signal() -> Result<watch::Receiver<bool>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        for n in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if n > 0 {
                end_now();
            }
            sender.send_replace(true);
        }
    });
    Ok(receiver)
}

#[expect(
    clippy::exit,
    reason = "a second signal asks for exactly this; nothing acknowledged is lost"
)]
fn end_now() {
    std::process::exit(1);
}

/// Written beside and renamed, so that whoever waits for the file reads a whole number.
fn write_port(path: &Path, port: u16) -> Result<(), Failure> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, format!("{port}\n"))
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|e| Failure::new(format!("cannot write the port to {}: {e}", path.display())))
}
