//! What the program says: text for people, or one line of JSON; failures on stderr with advice.

use std::io::{self, Write};

use serde::Serialize;
use tavi_fleet::ClientError;

/// Text or JSON, as asked for.
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result. A failure to print is told, because what is shown may be shown only once.
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let line = if self.json { serde_json::to_string(value)? } else { text(value) };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", line.trim_end()).and_then(|()| out.flush())?;
        Ok(())
    }

    /// Prints a failure on stderr; if even that fails, the exit status still tells.
    pub fn fail(&self, failure: &Failure) {
        let json = self.json.then(|| serde_json::to_string(failure).ok()).flatten();
        let line = json.unwrap_or_else(|| failure.text());
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

/// The last line of a list of which more can be asked for.
pub fn more(next: Option<&str>) -> String {
    next.map(|next| format!("\nThere is more: --after {next}")).unwrap_or_default()
}

/// Why nothing, or not all, was done, and what to do about it. Its JSON form is that of the API's errors.
#[derive(Debug, Serialize)]
pub struct Failure {
    error: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { error: "failed".into(), message: message.into(), hint: None }
    }

    /// The same, with advice; advice that is there already is kept.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: self.hint.or_else(|| Some(hint.into())), ..self }
    }

    /// The same, with something more to know.
    pub fn and(self, more: impl std::fmt::Display) -> Self {
        Self { message: format!("{}; {more}", self.message), ..self }
    }

    fn text(&self) -> String {
        match &self.hint {
            Some(hint) => format!("tavi-fleet: {}\n  {hint}", self.message),
            None => format!("tavi-fleet: {}", self.message),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => {
                let code = serde_json::to_value(refusal.error).ok();
                let code = code.and_then(|code| code.as_str().map(String::from));
                let error = code.unwrap_or_else(|| "failed".into());
                Self { error, message: refusal.message, hint: refusal.hint }
            }
            error if error.is_not_running() => Self { error: "not-running".into(), ..Self::new(error.to_string()) },
            error => Self::new(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(format!("the result could not be printed: {error}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(format!("the result could not be printed: {error}"))
    }
}
