//! What only the machine can show of a configuration: files that are missing or hold something
//! else, a data directory that cannot be used, an address of a different machine.
//!
//! `serve` and `config check` both begin with it, so that they agree. It changes nothing.
//!
//! How it fails: every fault is found at once, and names its key.

use std::net::TcpListener;
use std::path::Path;

use tagfast_api::{JwksSource, usable_keys};
use tagfast_resilience::{ErrorChain, Secret, private_files};
use tagfast_store_postgres::check_journal_dir;

use super::dead_letters::WebhookConfig;
use super::events::SaslConfig;
use super::login::{LoginConfig, PasswordFile};
use super::secrets::{CredentialFile, read_key};
use super::settings::Config;

/// What this machine lacks for a configuration, one text each.
pub fn machine_faults(config: &Config) -> Vec<String> {
    let mut faults: Vec<String> =
        config.signing_key_files.iter().filter_map(|file| read_key(file).err()).collect();
    let own_key = config.default_signing_key();
    if config.signing_key_files.is_empty() && own_key.exists() {
        faults.extend(read_key(&own_key).err());
    }
    faults.extend(config.token_secret().and_then(|file| file.read().err()));
    if let Some(JwksSource::File(file)) = config.jwks.expose()
        && let Err(why) = check_key_set(file)
    {
        faults.push(format!("auth.jwks {}: {why}", file.display()));
    }
    faults.extend(passwords(config).iter().filter_map(|file| file.read().err()));
    if let Some(postgres) = &config.postgres {
        let authorities = [
            postgres.tls_authorities(),
            postgres.kafka.as_ref().and_then(|kafka| kafka.tls_authorities()),
        ];
        faults.extend(authorities.into_iter().flatten().filter_map(|file| file.read().err()));
        let journal_dir = postgres.journal_dir.as_deref().map(check_journal_dir);
        let fault = journal_dir.and_then(Result::err);
        faults.extend(fault.map(|error| ErrorChain(&error).to_string()));
    }
    faults.extend(check_data_dir(&config.data_dir).err());
    // Port 0: a server that runs already holds the other one.
    if let Err(error) = TcpListener::bind((config.listen.ip(), 0)) {
        faults.push(format!("server.listen is {}: {error}", config.listen));
    }
    faults
}

/// Files with secrets that other users can read. They are used all the same: the mounted secrets of
/// containers cannot be narrower.
pub fn machine_notes(config: &Config) -> Vec<String> {
    let passwords = passwords(config);
    let files = passwords.iter().map(|file| (&file.key, &file.secrets));
    let token_secret = config.token_secret();
    let files = files.chain(token_secret.iter().map(|file| (&file.key, &file.secrets)));
    let files = files.flat_map(|(key, files)| files.iter().map(move |f| (key.as_str(), f)));
    let keys = config.signing_key_files.iter().map(|file| ("server.signing_key_file", file));
    files.chain(keys).filter_map(|(key, file)| readable_by_others(key, file)).collect()
}

/// Says that a file with a secret can be read by others; `None`: it cannot.
pub(crate) fn readable_by_others(key: &str, file: &Path) -> Option<String> {
    let mode = private_files::readable_by_others(file)?;
    let file = file.display();
    Some(format!(
        "{key} {file} has mode {mode:04o}: other users can read the secret; run `chmod 600`"
    ))
}

/// The files of all passwords and of the webhook's secret.
fn passwords(config: &Config) -> Vec<CredentialFile<Secret>> {
    let webhook = config.dead_letters.webhook.as_ref().and_then(WebhookConfig::secret);
    let mut files: Vec<_> = webhook.into_iter().collect();
    let Some(postgres) = &config.postgres else { return files };
    files.push(postgres.password());
    files.extend(postgres.etcd_login.as_ref().map(LoginConfig::password));
    let index = postgres.opensearch.as_ref().and_then(|index| index.login.as_ref());
    files.extend(index.map(LoginConfig::password));
    for redis in config.cache.redis.iter().chain(&postgres.state_redis) {
        let of_redis = redis.password.iter().chain(&redis.sentinel_password);
        files.extend(of_redis.map(PasswordFile::password));
    }
    let sasl = postgres.kafka.as_ref().and_then(|kafka| kafka.sasl.as_ref());
    files.extend(sasl.map(SaslConfig::password));
    files
}

/// Whether a file is a key set with a key that can verify tokens.
fn check_key_set(file: &Path) -> Result<(), String> {
    if !file.is_file() {
        return Err("there is no such file".to_owned());
    }
    let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    match usable_keys(&bytes) {
        Ok(0) => Err("none of its keys can verify tokens".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("it is not a JSON Web Key Set: {error}")),
    }
}

/// Whether a directory can be used as the data directory, or be made.
fn check_data_dir(dir: &Path) -> Result<(), String> {
    let place = || format!("store.data_dir {}", dir.display());
    let absolute = std::path::absolute(dir).map_err(|e| format!("{}: {e}", place()))?;
    let there = absolute.ancestors().find(|path| path.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("/"));
    if !there.is_dir() {
        return Err(format!("{}: {} is not a directory", place(), there.display()));
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(there, access)
        .map_err(|e| format!("{}: {} cannot be written: {e}", place(), there.display()))?;
    if there == absolute {
        tagfast_store_embedded::check_private(dir)
            .map_err(|e| format!("{}: {}", place(), ErrorChain(&e)))?;
    }
    Ok(())
}
