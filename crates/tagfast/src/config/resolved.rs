//! The second stage: judged, typed, in the units the parts want.
//!
//! Nothing is opened here, so that `config check` judges a configuration on any machine; secrets
//! are read by [`Config::auth`] and [`Config::signing_keys`] when a server starts (and by `config
//! check`).

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tagfast_api::{ApiLimits, AuthConfig, JwksSource};
use tagfast_domain::{Limits, TenantId};

use super::cache::{CacheConfig, cache, tenant_weights};
use super::keys::{KEYS, RawConfig, Scope};
use super::letters::{LettersConfig, letters};
use super::postgres::{PostgresConfig, postgres};
use super::raw::{Source, Sources};

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How requests prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// They do not; loopback only.
    None,
    /// Bearer JWTs.
    Jwt,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A `tracing` filter.
    pub level: String,
    /// The form.
    pub format: LogFormat,
}

/// Traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// Where spans go; `None` = nowhere.
    pub otlp_endpoint: Option<String>,
    /// Share of root spans that are kept, 0 to 1.
    pub trace_ratio: f64,
    /// The service's name in traces.
    pub service_name: String,
}

/// A configuration that may be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Worker threads; `None` = one per processor.
    pub worker_threads: Option<usize>,
    /// Limits of the HTTP layer.
    pub api_limits: ApiLimits,
    /// Limits of the domain.
    pub limits: Limits,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Memory for pages of the store's files, in bytes.
    pub cache_bytes: usize,
    /// The cache shield.
    pub cache: CacheConfig,
    /// Tenants that are let in more often than others while not everything can be answered; who is
    /// not in it has the weight 1. Too much for one: the others wait for as long as it asks.
    pub tenant_weights: BTreeMap<TenantId, u8>,
    /// What happens to dead letters.
    pub dead_letters: LettersConfig,
    /// The clusters; `None`: embedded.
    pub postgres: Option<PostgresConfig>,
    /// Who may call.
    pub auth_mode: AuthMode,
    /// Logs.
    pub log: LogConfig,
    /// Traces.
    pub telemetry: TelemetryConfig,
    signing_key_files: Vec<PathBuf>,
    hs256_secret_file: Option<PathBuf>,
    jwks: Option<JwksSource>,
    audience: Option<String>,
    issuer: Option<String>,
    leeway: Duration,
}

impl Config {
    /// Judges what the sources said; all errors at once.
    pub fn resolve(raw: &RawConfig) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let config = Self::build(raw, &mut errors);
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    fn build(raw: &RawConfig, errors: &mut Vec<String>) -> Self {
        let (server, auth) = (&raw.server, &raw.auth);
        let listen = listen(server.listen.as_deref().unwrap_or("127.0.0.1:7070"), errors);
        let auth_mode = match auth.mode.as_deref().unwrap_or("none") {
            "none" => AuthMode::None,
            "jwt" => AuthMode::Jwt,
            other => {
                errors.push(format!("auth.mode is {other:?}; use \"none\" or \"jwt\""));
                AuthMode::None
            }
        };
        if auth_mode == AuthMode::None && !listen.ip().is_loopback() {
            errors.push(format!(
                "server.listen = \"{listen}\" can be reached from other machines, but auth.mode is \"none\": \
                 set auth.mode = \"jwt\" with auth.hs256_secret_file or auth.jwks, or listen on 127.0.0.1"
            ));
        }
        if auth_mode == AuthMode::Jwt && auth.hs256_secret_file.is_none() && auth.jwks.is_none() {
            errors.push("auth.mode = \"jwt\" needs auth.hs256_secret_file or auth.jwks".to_owned());
        }
        match raw.store.kind.as_deref().unwrap_or("embedded") {
            "embedded" => {}
            "postgres" => {}
            other => {
                errors.push(format!("store.kind is {other:?}; use \"embedded\" or \"postgres\""))
            }
        }
        let postgres =
            (raw.store.kind.as_deref() == Some("postgres")).then(|| postgres(raw, errors));
        let format = match raw.log.format.as_deref().unwrap_or("auto") {
            "auto" => LogFormat::Auto,
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                errors.push(format!("log.format is {other:?}; use \"auto\", \"text\" or \"json\""));
                LogFormat::Auto
            }
        };
        let level = raw.log.level.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(e) = tracing_subscriber::EnvFilter::try_new(&level) {
            errors.push(format!("log.level is {level:?}: {e}"));
        }
        let trace_ratio = raw.telemetry.trace_ratio.unwrap_or(0.01);
        if !(0.0..=1.0).contains(&trace_ratio) {
            errors
                .push(format!("telemetry.trace_ratio is {trace_ratio}; it is a share from 0 to 1"));
        }
        let otlp_endpoint = text(raw.telemetry.otlp_endpoint.as_ref());
        if let Some(url) = otlp_endpoint.as_ref().filter(|u| !is_http_url(u)) {
            errors.push(format!(
                "telemetry.otlp_endpoint is {url:?}; it begins with http:// or https://"
            ));
        }
        cluster_urls(raw, errors);
        let cache = cache(raw, errors);

        Self {
            listen,
            worker_threads: server.worker_threads.filter(|n| *n > 0).map(|n| to_usize(n.min(1024))),
            api_limits: ApiLimits { max_stale: cache.stale_if_error, ..api_limits(raw, errors) },
            limits: Limits {
                tags_per_content: number(
                    raw.limits.tags_per_content,
                    Limits::default().tags_per_content,
                    "limits.tags_per_content",
                    1..=10_000,
                    errors,
                ),
            },
            data_dir: PathBuf::from(raw.store.data_dir.as_deref().unwrap_or("./tagfast-data")),
            cache_bytes: number(
                raw.store.cache_bytes,
                32 << 20,
                "store.cache_bytes",
                1 << 20..=1 << 40,
                errors,
            ),
            cache,
            tenant_weights: tenant_weights(raw, errors),
            dead_letters: letters(raw, errors),
            postgres,
            auth_mode,
            log: LogConfig { level, format },
            telemetry: TelemetryConfig {
                otlp_endpoint,
                trace_ratio,
                service_name: raw
                    .telemetry
                    .service_name
                    .clone()
                    .unwrap_or_else(|| "tagfast".to_owned()),
            },
            signing_key_files: server
                .signing_key_file
                .iter()
                .flatten()
                .map(PathBuf::from)
                .collect(),
            hs256_secret_file: text(auth.hs256_secret_file.as_ref()).map(PathBuf::from),
            jwks: text(auth.jwks.as_ref()).map(|j| {
                if is_http_url(&j) { JwksSource::Url(j) } else { JwksSource::File(j.into()) }
            }),
            audience: text(auth.audience.as_ref()),
            issuer: text(auth.issuer.as_ref()),
            leeway: Duration::from_secs(number(
                auth.leeway_seconds,
                60,
                "auth.leeway_seconds",
                0..=86_400,
                errors,
            ) as u64),
        }
    }

    /// Who may call, with the secret read from its file.
    pub fn auth(&self) -> Result<AuthConfig, String> {
        match self.auth_mode {
            AuthMode::None => Ok(AuthConfig::None),
            AuthMode::Jwt => Ok(AuthConfig::Jwt {
                hs256_secret: self.hs256_secret_file.as_deref().map(read_secret).transpose()?,
                jwks: self.jwks.clone(),
                audience: self.audience.clone(),
                issuer: self.issuer.clone(),
                leeway: self.leeway,
            }),
        }
    }

    /// The keys of tokens and cursors; the first signs. Without configured files, `token.key` in
    /// the data directory, made if it is not there.
    pub fn signing_keys(&self) -> Result<Vec<[u8; 32]>, String> {
        if self.signing_key_files.is_empty() {
            let path = self.data_dir.join("token.key");
            if !path.exists() {
                make_key(&path)?;
            }
            return read_key(&path).map(|k| vec![k]);
        }
        self.signing_key_files.iter().map(|p| read_key(p)).collect()
    }

    /// Checks what only this machine can tell: that the files exist and hold what they should.
    pub fn check_files(&self) -> Vec<String> {
        let password = self.postgres.as_ref().and_then(|p| p.password().err());
        let tls = self.postgres.as_ref().and_then(|p| p.tls().err());
        let keys = self.signing_key_files.iter().filter_map(|p| read_key(p).err());
        let auth = self.auth().err();
        let jwks = match &self.jwks {
            Some(JwksSource::File(path)) if !path.is_file() => {
                Some(format!("auth.jwks: {} is not a file", path.display()))
            }
            Some(JwksSource::File(_) | JwksSource::Url(_)) | None => None,
        };
        keys.chain(password).chain(tls).chain(auth).chain(jwks).collect()
    }
}

/// Keys that are set but do nothing in embedded mode.
pub fn without_effect(sources: &Sources) -> Vec<String> {
    let set = |k: &&super::keys::Key| {
        k.scope == Scope::Cluster
            && sources.set.get(&(k.section, k.name)).is_some_and(|(_, s)| *s != Source::Default)
    };
    KEYS.iter().filter(set).map(super::keys::Key::path).collect()
}

/// Reads a secret, refusing one that can be guessed.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("secret file {}: {e}", path.display()))?;
    let secret = bytes.trim_ascii().to_vec();
    if secret.len() < 32 {
        return Err(format!(
            "secret file {} holds {} bytes; at least 32 are needed (make one: head -c 32 /dev/urandom | base64 > F)",
            path.display(),
            secret.len()
        ));
    }
    Ok(secret)
}

fn read_key(path: &Path) -> Result<[u8; 32], String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("signing key file {}: {e}", path.display()))?;
    let text = text.trim();
    let mut key = [0; 32];
    let is_hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex {
        return Err(format!("signing key file {} must hold 64 hexadecimal digits", path.display()));
    }
    for (byte, i) in key.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[i..i + 2], 16)
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(key)
}

fn make_key(path: &Path) -> Result<(), String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let fail = |e: std::io::Error| format!("cannot make the signing key {}: {e}", path.display());
    let mut key = [0u8; 32];
    getrandom::fill(&mut key).map_err(|e| format!("cannot make a signing key: {e}"))?;
    let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    // Written beside and renamed, so that a crash leaves no half key.
    let part = path.with_extension("key.part");
    let _ = std::fs::remove_file(&part);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(fail)?;
    writeln!(file, "{hex}").and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&part, path).map_err(fail)
}

fn listen(text: &str, errors: &mut Vec<String>) -> SocketAddr {
    let parsed = text.parse().ok().or_else(|| {
        let (host, _) = text.rsplit_once(':')?;
        (host == "localhost")
            .then(|| text.to_socket_addrs().ok()?.find(SocketAddr::is_ipv4))
            .flatten()
    });
    parsed.unwrap_or_else(|| {
        errors.push(format!(
            "server.listen is {text:?}; write an address and a port, for example 127.0.0.1:7070"
        ));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn api_limits(raw: &RawConfig, errors: &mut Vec<String>) -> ApiLimits {
    let (server, defaults) = (&raw.server, ApiLimits::default());
    let mut ms = |given: Option<u64>, default: Duration, name: &str| {
        let default = to_usize(u64::try_from(default.as_millis()).unwrap_or(u64::MAX));
        Duration::from_millis(number(given, default, name, 1..=3_600_000, errors) as u64)
    };
    let request_timeout =
        ms(server.request_timeout_ms, defaults.request_timeout, "server.request_timeout_ms");
    let header_timeout =
        ms(server.header_timeout_ms, defaults.header_timeout, "server.header_timeout_ms");
    let drain_timeout =
        ms(server.drain_timeout_ms, defaults.drain_timeout, "server.drain_timeout_ms");
    let rate = number(
        raw.limits.requests_per_second,
        0,
        "limits.requests_per_second",
        0..=10_000_000,
        errors,
    );
    let burst = number(raw.limits.burst, 0, "limits.burst", 0..=10_000_000, errors);
    ApiLimits {
        body_bytes: number(
            server.max_body_bytes,
            defaults.body_bytes,
            "server.max_body_bytes",
            1024..=1 << 30,
            errors,
        ),
        url_bytes: number(
            server.max_url_bytes,
            defaults.url_bytes,
            "server.max_url_bytes",
            256..=65_000,
            errors,
        ),
        batch_items: number(
            server.max_batch_items,
            defaults.batch_items,
            "server.max_batch_items",
            1..=10_000,
            errors,
        ),
        connections: number(
            server.max_connections,
            defaults.connections,
            "server.max_connections",
            1..=1_000_000,
            errors,
        ),
        request_timeout,
        header_timeout,
        drain_timeout,
        requests_per_second: u32::try_from(rate).unwrap_or(u32::MAX),
        burst: u32::try_from(if burst == 0 { rate } else { burst }).unwrap_or(u32::MAX),
        ..defaults
    }
}

pub(super) fn number(
    given: Option<u64>,
    default: usize,
    name: &str,
    range: std::ops::RangeInclusive<usize>,
    errors: &mut Vec<String>,
) -> usize {
    let value = given.map_or(default, to_usize);
    if !range.contains(&value) {
        errors.push(format!("{name} is {value}; it must be {} to {}", range.start(), range.end()));
        return default;
    }
    value
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

pub(super) fn text(value: Option<&String>) -> Option<String> {
    value.filter(|v| !v.is_empty()).cloned()
}

pub(super) fn is_http_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

fn cluster_urls(raw: &RawConfig, errors: &mut Vec<String>) {
    for (name, url) in
        [("cache.redis_url", &raw.cache.redis_url), ("state.redis_url", &raw.state.redis_url)]
    {
        if let Some(Err(error)) =
            url.as_deref().filter(|u| !u.is_empty()).map(tagfast_redis::Place::parse)
        {
            errors.push(format!("{name}: {error}"));
        }
    }
    if raw.search.opensearch_url.as_deref().is_some_and(|u| !is_http_url(u)) {
        errors.push("search.opensearch_url must begin with http:// or https://".to_owned());
    }
    number(raw.store.max_loss_ms, 1000, "store.max_loss_ms", 1..=3_600_000, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Config, Vec<String>> {
        Config::resolve(&toml::from_str(text).unwrap())
    }

    #[test]
    fn the_default_is_the_embedded_store_on_loopback() {
        let config = resolve("").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7070");
        assert_eq!(config.auth_mode, AuthMode::None);
        assert_eq!(config.data_dir, Path::new("./tagfast-data"));
        assert_eq!(config.api_limits.batch_items, 500);
        assert_eq!(config.limits.tags_per_content, 100);
    }

    #[test]
    fn defaults_of_the_table_are_the_defaults_of_the_program() {
        let table = crate::config::keys::KEYS
            .iter()
            .filter(|k| !k.default.is_empty())
            .map(|k| format!("{}.{} = {}\n", k.section, k.name, k.default))
            .collect::<String>();
        let (explicit, implicit) = (resolve(&table).unwrap(), resolve("").unwrap());
        assert_eq!(format!("{explicit:?}"), format!("{implicit:?}"));
    }

    #[test]
    fn no_authentication_away_from_loopback_is_refused() {
        for listen in ["0.0.0.0:7070", "[::]:7070", "192.0.2.1:80"] {
            let errors = resolve(&format!("[server]\nlisten = \"{listen}\"")).unwrap_err();
            assert!(errors[0].contains("auth.mode") && errors[0].contains("jwt"), "{errors:?}");
        }
        assert!(resolve("[server]\nlisten = \"[::1]:7070\"").is_ok());
        assert!(resolve("[server]\nlisten = \"localhost:7070\"").is_ok());
        assert!(
            resolve(
                "[server]\nlisten = \"0.0.0.0:7070\"\n[auth]\nmode = \"jwt\"\njwks = \"k.json\""
            )
            .is_ok()
        );
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let errors = resolve(
            "[server]\nlisten = \"nowhere\"\nmax_batch_items = 0\n[store]\nkind = \"postgres\"\n[log]\nformat = \"xml\"\n\
             [auth]\nmode = \"basic\"\n[cache]\nredis_url = \"http://x\"\n[telemetry]\ntrace_ratio = 2.0",
        )
        .unwrap_err();
        for word in [
            "server.listen",
            "server.max_batch_items is 0",
            "store.clusters",
            "store.etcd",
            "store.password_file",
            "server.signing_key_file",
            "log.format",
            "auth.mode",
            "cache.redis_url",
            "trace_ratio",
        ] {
            assert!(errors.iter().any(|e| e.contains(word)), "{word}: {errors:?}");
        }
    }

    #[test]
    fn the_signing_key_is_made_once_and_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config =
            resolve(&format!("[store]\ndata_dir = {:?}", dir.path().join("data"))).unwrap();
        let first = config.signing_keys().unwrap();
        assert_eq!(first, config.signing_keys().unwrap());
        assert_ne!(first[0], [0; 32]);
        let mode =
            std::fs::metadata(dir.path().join("data/token.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn short_secrets_and_bad_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, key) = (dir.path().join("secret"), dir.path().join("key"));
        std::fs::write(&secret, "kurz\n").unwrap();
        std::fs::write(&key, "é".repeat(32)).unwrap();
        let config = resolve(&format!(
            "[server]\nsigning_key_file = [{key:?}]\n[auth]\nmode = \"jwt\"\nhs256_secret_file = {secret:?}"
        ))
        .unwrap();
        assert!(config.auth().unwrap_err().contains("at least 32"));
        assert!(config.signing_keys().unwrap_err().contains("64 hexadecimal digits"));
        assert_eq!(config.check_files().len(), 2);
        std::fs::write(&secret, format!("{}\n", "s".repeat(32))).unwrap();
        assert!(config.auth().is_ok());
    }
}
