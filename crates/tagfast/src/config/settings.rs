//! The second stage of the configuration: checked, typed, in the units that the parts take.
//!
//! Nothing is opened here, so that `config check` can check a configuration on any machine.
//! Secrets are read from the files that [`Config::token_secret`] and its siblings name; what this
//! machine lacks is found before that ([`super::machine_faults`]).

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use tagfast_api::{AllowedHosts, ApiLimits, AuthConfig, JwksSource};
use tagfast_domain::{Limits, TenantId};
use tagfast_resilience::secret::redacted;
use tagfast_resilience::{Address, Credential, Secret};

use super::cache::{CacheConfig, cache, tenant_weights};
use super::dead_letters::{DeadLettersConfig, dead_letters};
use super::events;
use super::key::{ChoiceKey, Key, Scope, TextKey};
use super::keys::{AUTH, CACHE, KEYS, LIMITS, LOG, SERVER, STATE, STORE, TELEMETRY};
use super::log_filter;
use super::postgres::{PostgresConfig, postgres};
use super::secrets::{CredentialFile, make_key};
use super::values::{Sources, Values, is_http_url};

/// Largest request bodies that the bytes in flight must have room for.
const BODIES_IN_FLIGHT_MIN: u64 = 4;

/// The form of logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How requests prove their user.
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
    /// The OTLP endpoint; `None` = no traces.
    pub otlp_endpoint: Option<Address>,
    /// Share of root spans that are kept, 0 to 1.
    pub trace_ratio: f64,
    /// The service's name in traces.
    pub service_name: String,
}

/// A configuration that can be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address and port of the HTTP server.
    pub listen: SocketAddr,
    /// The names by which clients may call the server.
    pub allowed_hosts: AllowedHosts,
    /// Worker threads; `None` = one per processor.
    pub worker_threads: Option<usize>,
    /// Limits of the HTTP layer.
    pub api_limits: ApiLimits,
    /// Limits of the domain.
    pub limits: Limits,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Memory for pages of the embedded store's files, in bytes.
    pub page_cache_bytes: usize,
    /// The caches in front of the databases.
    pub cache: CacheConfig,
    /// The tenants with a weight other than 1.
    pub tenant_weights: BTreeMap<TenantId, u8>,
    /// Automatic replays of dead letters, and the webhook.
    pub dead_letters: DeadLettersConfig,
    /// The clusters; `None` = embedded.
    pub postgres: Option<PostgresConfig>,
    /// How requests prove their user.
    pub auth_mode: AuthMode,
    /// Logs.
    pub log: LogConfig,
    /// Traces.
    pub telemetry: TelemetryConfig,
    pub(super) signing_key_files: Vec<PathBuf>,
    pub(super) hs256_secret_file: Option<PathBuf>,
    /// Its URL may hold a key.
    pub(super) jwks: Secret<Option<JwksSource>>,
    audience: Option<String>,
    issuer: Option<String>,
    leeway: Duration,
}

impl Config {
    /// Checks what the sources set.
    ///
    /// # Errors
    /// Every fault, one text each.
    pub fn resolve(sources: &Sources) -> Result<Self, Vec<String>> {
        let mut values = Values::new(sources);
        events::require_kafka(&mut values, cfg!(feature = "kafka"));
        values.check_all();
        let config = Self::build(&mut values);
        let errors = values.into_errors();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    fn build(values: &mut Values<'_>) -> Self {
        let listen = listen(values);
        let auth_mode = auth_mode(values, listen);
        let postgres = (values.choice(&STORE.kind) == Some("postgres")).then(|| postgres(values));
        cluster_urls(values);
        let cache = cache(values);
        let worker_threads = Some(values.size(&SERVER.worker_threads)).filter(|n| *n > 0);
        Self {
            listen,
            allowed_hosts: allowed_hosts(values, listen, auth_mode),
            worker_threads,
            api_limits: api_limits(values),
            limits: Limits { tags_per_content: values.size(&LIMITS.tags_per_content) },
            data_dir: values.text(&STORE.data_dir).unwrap_or_default().into(),
            page_cache_bytes: values.size(&STORE.page_cache_bytes),
            cache,
            tenant_weights: tenant_weights(values),
            dead_letters: dead_letters(values),
            postgres,
            auth_mode,
            log: log(values),
            telemetry: telemetry(values),
            signing_key_files: paths(values.list(&SERVER.signing_key_file)),
            hs256_secret_file: values.text(&AUTH.hs256_secret_file).map(PathBuf::from),
            jwks: Secret::new(jwks(values)),
            audience: values.text(&AUTH.audience),
            issuer: values.text(&AUTH.issuer),
            leeway: values.seconds(&AUTH.leeway_seconds),
        }
    }

    /// The file of the secret of HS256 tokens; `None`: there is none, or no caller is asked for a
    /// token.
    pub fn token_secret(&self) -> Option<CredentialFile<Secret<Vec<u8>>>> {
        let file = self.hs256_secret_file.as_deref().filter(|_| self.auth_mode == AuthMode::Jwt)?;
        Some(CredentialFile::token_secret("auth.hs256_secret_file", file))
    }

    /// How the API authenticates; `secret` is the content of [`Config::token_secret`].
    pub fn auth(&self, secret: Option<Credential<Secret<Vec<u8>>>>) -> AuthConfig {
        match self.auth_mode {
            AuthMode::None => AuthConfig::None,
            AuthMode::Jwt => AuthConfig::Jwt {
                hs256_secret: secret,
                jwks: self.jwks.expose().clone(),
                audience: self.audience.clone(),
                issuer: self.issuer.clone(),
                leeway: self.leeway,
            },
        }
    }

    /// The files of the keys of tokens and cursors; the first signs. Without configured files this
    /// is `token.key` in the data directory, made if it is missing.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn signing_keys(&self) -> Result<CredentialFile<Vec<[u8; 32]>>, String> {
        let mut files = self.signing_key_files.clone();
        if files.is_empty() {
            let path = self.default_signing_key();
            if !path.exists() {
                make_key(&path)?;
            }
            files.push(path);
        }
        Ok(CredentialFile::signing_keys("server.signing_key_file", files))
    }

    /// Whether [`Config::signing_keys`] will make a key.
    pub fn lacks_signing_key(&self) -> bool {
        self.signing_key_files.is_empty() && !self.default_signing_key().exists()
    }

    /// The signing key of a data directory.
    pub(super) fn default_signing_key(&self) -> PathBuf {
        self.data_dir.join("token.key")
    }
}

/// The keys that are set but have no effect beside the others.
pub fn without_effect(sources: &Sources) -> Vec<String> {
    let is = |key: &ChoiceKey, word: &str| {
        sources.effective(&key.0).is_some_and(|(value, _)| value.as_str() == Some(word))
    };
    let (embedded, open) = (is(&STORE.kind, "embedded"), is(&AUTH.mode, "none"));
    let ChoiceKey(mode) = AUTH.mode;
    let idle = |key: &&Key| {
        let of_auth = open && key.section == mode.section && key.name != mode.name;
        sources.is_set(key) && (of_auth || (embedded && key.scope == Scope::Cluster))
    };
    KEYS.iter().filter(idle).map(Key::path).collect()
}

fn paths(files: Vec<String>) -> Vec<PathBuf> {
    files.into_iter().map(PathBuf::from).collect()
}

fn listen(values: &mut Values<'_>) -> SocketAddr {
    let text = values.text(&SERVER.listen).unwrap_or_default();
    let parsed = text.parse().ok().or_else(|| {
        let (host, _) = text.rsplit_once(':')?;
        (host == "localhost")
            .then(|| text.to_socket_addrs().ok()?.find(SocketAddr::is_ipv4))
            .flatten()
    });
    parsed.unwrap_or_else(|| {
        values.refuse(format!(
            "server.listen is {text:?}; write an address and a port, for example 127.0.0.1:7070"
        ));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn allowed_hosts(values: &mut Values<'_>, listen: SocketAddr, auth: AuthMode) -> AllowedHosts {
    let names = values.list(&SERVER.allowed_hosts);
    let any = auth == AuthMode::Jwt && names.is_empty();
    match AllowedHosts::new(names.iter().map(String::as_str), any) {
        Ok(hosts) => hosts.with_listener(listen.ip()),
        Err(bad) => {
            values.refuse(format!(
                "server.allowed_hosts has {bad:?}; write a host or host:port, for example \
                 tags.example.com"
            ));
            AllowedHosts::default()
        }
    }
}

fn jwks(values: &mut Values<'_>) -> Option<JwksSource> {
    let place = values.text(&AUTH.jwks)?;
    match place.parse() {
        Ok(source) => Some(source),
        Err(error) => {
            values.refuse(format!("auth.jwks is {}: {error}", redacted(&place)));
            None
        }
    }
}

fn auth_mode(values: &mut Values<'_>, listen: SocketAddr) -> AuthMode {
    if values.choice(&AUTH.mode) == Some("jwt") {
        let secret = values.text(&AUTH.hs256_secret_file);
        if secret.or_else(|| values.text(&AUTH.jwks)).is_none() {
            values.refuse("auth.mode = \"jwt\" needs auth.hs256_secret_file or auth.jwks");
        }
        return AuthMode::Jwt;
    }
    if !listen.ip().is_loopback() {
        values.refuse(format!(
            "server.listen = \"{listen}\" can be reached from other machines, but auth.mode is \
             \"none\": set auth.mode = \"jwt\" with auth.hs256_secret_file or auth.jwks, or listen \
             on 127.0.0.1"
        ));
    }
    AuthMode::None
}

fn api_limits(values: &mut Values<'_>) -> ApiLimits {
    let (body, in_flight) =
        (values.number(&SERVER.max_body_bytes), values.number(&SERVER.max_in_flight_bytes));
    if in_flight / BODIES_IN_FLIGHT_MIN < body {
        values.refuse(format!(
            "server.max_in_flight_bytes is {in_flight}; it must be at least \
             {BODIES_IN_FLIGHT_MIN} times server.max_body_bytes ({body})"
        ));
    }
    let rate = values.small(&LIMITS.requests_per_second);
    let burst = values.small(&LIMITS.burst);
    ApiLimits {
        body_bytes: values.size(&SERVER.max_body_bytes),
        url_bytes: values.size(&SERVER.max_url_bytes),
        batch_items: values.size(&SERVER.max_batch_items),
        connections: values.size(&SERVER.max_connections),
        request_timeout: values.millis(&SERVER.request_timeout_ms),
        header_timeout: values.millis(&SERVER.header_timeout_ms),
        write_timeout: values.millis(&SERVER.write_timeout_ms),
        in_flight_bytes: in_flight,
        drain_timeout: values.millis(&SERVER.drain_timeout_ms),
        requests_per_second: rate,
        burst: if burst == 0 { rate } else { burst },
        max_stale: values.seconds(&CACHE.stale_if_error_seconds),
    }
}

fn log(values: &mut Values<'_>) -> LogConfig {
    let level = values.text(&LOG.level).unwrap_or_default();
    let level = log_filter::checked(&level).unwrap_or_else(|error| {
        values.refuse(format!("log.level is {level:?}: {error}"));
        level
    });
    let format = match values.choice(&LOG.format) {
        Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(_) | None => LogFormat::Auto,
    };
    LogConfig { level, format }
}

fn telemetry(values: &mut Values<'_>) -> TelemetryConfig {
    let otlp_endpoint = values.text(&TELEMETRY.otlp_endpoint).map(Address::new);
    if otlp_endpoint.as_ref().is_some_and(|url| !is_http_url(url.expose())) {
        values.refuse("telemetry.otlp_endpoint must be a URL with http:// or https://");
    }
    TelemetryConfig {
        otlp_endpoint,
        trace_ratio: values.fraction(&TELEMETRY.trace_ratio),
        service_name: values.text(&TELEMETRY.service_name).unwrap_or_default(),
    }
}

/// Checks the Redis URLs; in both modes, so that a cluster's file is checked on any machine.
fn cluster_urls(values: &mut Values<'_>) {
    for key in [&CACHE.redis_url, &STATE.redis_url] {
        let TextKey(row) = key;
        let url = values.text(key);
        if let Some(Err(error)) = url.as_deref().map(tagfast_redis::Endpoint::parse) {
            values.refuse(format!("{}: {error}", row.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::sources::gather;

    fn resolve(text: &str) -> Result<Config, Vec<String>> {
        let sources = gather(Some((Path::new("t.toml"), text)), &BTreeMap::new(), &[]).unwrap();
        Config::resolve(&sources)
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
        let table = KEYS
            .iter()
            .filter(|k| !k.default.is_empty())
            .map(|k| format!("{}.{} = {}\n", k.section, k.name, k.default))
            .collect::<String>();
        let (explicit, implicit) = (resolve(&table).unwrap(), resolve("").unwrap());
        assert_eq!(format!("{explicit:?}"), format!("{implicit:?}"));
        let (ours, libraries) = (implicit.api_limits, ApiLimits::default());
        assert_eq!(format!("{ours:?}"), format!("{libraries:?}"), "without a configuration");
        assert_eq!(implicit.limits, Limits::default(), "without a configuration");
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
    fn names_are_hosts_and_bodies_fit_the_bytes_in_flight() {
        let errors = resolve("[server]\nallowed_hosts = [\"http://x\"]").unwrap_err();
        assert!(errors[0].contains("server.allowed_hosts"), "{errors:?}");
        resolve("[server]\nallowed_hosts = [\"tags.example.com\", \"x:80\", \"[::1]:7\"]").unwrap();
        let errors = resolve("[server]\nmax_body_bytes = 67108864").unwrap_err();
        assert!(errors[0].contains("server.max_in_flight_bytes"), "{errors:?}");
        let text = "[server]\nmax_body_bytes = 67108864\nmax_in_flight_bytes = 268435456";
        assert_eq!(resolve(text).unwrap().api_limits.in_flight_bytes, 256 << 20);
    }

    #[test]
    fn keys_over_plain_http_are_refused_except_from_loopback() {
        let with = |place: &str| resolve(&format!("[auth]\nmode = \"jwt\"\njwks = \"{place}\""));
        for place in ["http://id.example/keys", "HTTP://10.0.0.1/keys", "ftp://id.example/keys"] {
            let errors = with(place).unwrap_err();
            assert!(
                errors[0].contains("auth.jwks") && errors[0].contains("https://"),
                "{errors:?}"
            );
        }
        for place in ["https://id.example/keys", "http://127.0.0.1:9/keys", "keys.json"] {
            assert!(with(place).is_ok(), "{place}");
        }
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
        let read = || config.signing_keys().unwrap().read().unwrap();
        let first = read();
        assert_eq!(first, read());
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
        let token_secret = || config.token_secret().unwrap().read();
        assert!(token_secret().unwrap_err().contains("at least 32"));
        let keys = config.signing_keys().unwrap().read();
        assert!(keys.unwrap_err().contains("64 hexadecimal digits"));
        let faults = crate::config::machine_faults(&config);
        assert_eq!(faults.len(), 2, "{faults:?}");
        std::fs::write(&secret, format!("{}\n", "s".repeat(32))).unwrap();
        assert!(token_secret().is_ok());
    }
}
