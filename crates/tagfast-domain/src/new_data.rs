//! Rules for what is added, beyond the rules of each value: ids and users without controls of the
//! direction of text.
//!
//! Ids belong to the product and are kept byte for byte, so nothing is dropped from them; an id or
//! a user that shows itself in an order that is not its own is refused where a tag is added. What
//! an earlier release stored remains readable and removable: reads and removals never ask here.

use crate::content::forbidden;
use crate::invisible::is_bidi_control;
use crate::{DomainError, Write};

impl Write {
    /// Checks what the write would add.
    ///
    /// # Errors
    ///
    /// [`DomainError::ForbiddenCharacter`] if it adds a tag and its content id, its user or the
    /// user of an imported tag has a control of the direction of text.
    pub fn check_new_data(&self) -> Result<(), DomainError> {
        let added = self.operation.added();
        if added.is_empty() {
            return Ok(());
        }
        check("content id", self.key.content.content_id.as_str())?;
        let users = added.iter().filter_map(|tag| Some(tag.origin.as_ref()?.by.as_str()));
        users.chain([self.user.as_str()]).try_for_each(|user| check("user", user))
    }
}

fn check(what: &'static str, text: &str) -> Result<(), DomainError> {
    match text.chars().find(|c| is_bidi_control(*c)) {
        Some(c) => Err(forbidden(what, c, "control of the direction of text")),
        None => Ok(()),
    }
}
