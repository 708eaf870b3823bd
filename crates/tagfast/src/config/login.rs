//! A user name and the file of its password: two keys that need each other.
//!
//! How it fails: one key without the other is refused.

use std::path::PathBuf;

use tagfast_resilience::Secret;

use super::key::TextKey;
use super::secrets::CredentialFile;
use super::values::Values;

/// A user and the file of its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginConfig {
    /// The user name.
    pub user: String,
    password_file: PasswordFile,
}

impl LoginConfig {
    /// The password's file.
    pub fn password(&self) -> CredentialFile<Secret> {
        self.password_file.password()
    }
}

/// The file of a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswordFile {
    /// The key that names the file.
    key: String,
    path: PathBuf,
}

impl PasswordFile {
    /// The password's file.
    pub fn password(&self) -> CredentialFile<Secret> {
        CredentialFile::password(self.key.clone(), &self.path)
    }
}

/// The file that a key names; `None` if it is unset.
pub(super) fn password_file(values: &Values<'_>, key: &TextKey) -> Option<PasswordFile> {
    let path = values.text(key)?.into();
    Some(PasswordFile { key: key.0.path(), path })
}

/// A user and the file of its password; `None` if both keys are unset.
pub(super) fn login(
    values: &mut Values<'_>,
    user_key: &TextKey,
    file_key: &TextKey,
) -> Option<LoginConfig> {
    let (user, file) = (values.text(user_key), password_file(values, file_key));
    if user.is_some() != file.is_some() {
        values.refuse(format!("{} and {} need each other", user_key.0.path(), file_key.0.path()));
    }
    let (user, password_file) = user.zip(file)?;
    Some(LoginConfig { user, password_file })
}
