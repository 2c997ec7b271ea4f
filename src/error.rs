//! The one error type that a person reads: what failed, why, and one thing to try.

use std::fmt;

/// `cannot <what>: <why>; <hint>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    why: String,
    hint: Option<String>,
}

impl Error {
    /// `what` is a verb and its object with the address or path (`listen on [::]:2333/tcp`), `why` the kernel's words.
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Error { what: what.into(), why: why.to_string(), hint: None }
    }

    /// Adds one thing to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What, why and hint, for passing it on to another process.
    pub fn parts(&self) -> (&str, &str, Option<&str>) {
        (&self.what, &self.why, self.hint.as_deref())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.why)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_and_what_to_try() {
        let error = Error::new("listen on [::]:2333/tcp", "Address already in use").hint("change `option port`");
        assert_eq!(error.to_string(), "cannot listen on [::]:2333/tcp: Address already in use; change `option port`");
    }
}
