//! An error with all its sources on one line, for logs and messages.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// An error of any type, kept as the `source` of an error that several causes can have.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Displays an error and its sources, outermost first: `cannot read the key: connection refused`.
///
/// Our errors do not print their source; some of other crates do. A source whose text ends what was
/// printed before is left out, so that no text stands twice.
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        out.write_str(&printed)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !printed.ends_with(&text) {
                write!(out, ": {text}")?;
                printed = text;
            }
            next = error.source();
        }
        Ok(())
    }
}

/// One error for several callers: those that shared the work that failed.
#[derive(Debug, Clone)]
pub struct SharedError(Arc<dyn Error + Send + Sync>);

impl SharedError {
    /// Shares an error or a sentence.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("connection refused")]
    struct Refused;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("cannot read the key")]
        Typed(#[source] Refused),
        #[error("cannot read the key: {0}")]
        PrintsItsSource(#[source] Refused),
    }

    #[test]
    fn every_source_is_printed_once() {
        let line = "cannot read the key: connection refused";
        assert_eq!(ErrorChain(&Failed::Typed(Refused)).to_string(), line);
        assert_eq!(ErrorChain(&Failed::PrintsItsSource(Refused)).to_string(), line);
        assert_eq!(ErrorChain(&Refused).to_string(), "connection refused");
        let shared = SharedError::new(Failed::Typed(Refused));
        assert_eq!(ErrorChain(&shared.clone()).to_string(), line);
    }
}
