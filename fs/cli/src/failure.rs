//! Errors as a person at a terminal needs them: what was attempted, why it failed, what to do.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// Kinds of failure that scripts tell apart, with their exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Network, kernel, disk.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Image, layer, path or mount is not there.
    NotFound = 3,
    /// Credentials or permission.
    Refused = 4,
    /// Content is not what its digest promises.
    Corrupt = 5,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Refused => "refused",
            Self::Corrupt => "corrupt",
        }
    }
}

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    /// What was attempted, `mounting IMAGE in DIR`.
    attempted: String,
    /// Why it failed, outermost first.
    reasons: Vec<String>,
    advice: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, attempted: impl Into<String>, reason: impl Into<String>) -> Self {
        let reasons = vec![reason.into()];
        Self { code, attempted: attempted.into(), reasons, advice: None }
    }

    /// With the error and all its sources as reasons.
    pub(crate) fn caused(
        code: Code,
        attempted: impl Into<String>,
        cause: &(dyn Error + 'static),
    ) -> Self {
        let mut reasons: Vec<String> = Vec::new();
        let mut next = Some(cause);
        while let Some(error) = next {
            let text = error.to_string();
            // Some errors repeat their source in their own words.
            if !reasons.last().is_some_and(|last| last.contains(&text)) {
                reasons.push(text);
            }
            next = error.source();
        }
        Self { code, attempted: attempted.into(), reasons, advice: None }
    }

    pub(crate) fn io(attempted: impl Into<String>, cause: &std::io::Error) -> Self {
        let code = match cause.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::Refused,
            _ => Code::Failed,
        };
        Self::caused(code, attempted, cause)
    }

    pub(crate) fn usage(attempted: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(Code::Usage, attempted, reason)
    }

    /// What to do about it.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "error": {
            "kind": self.code.name(),
            "attempted": self.attempted,
            "reasons": self.reasons,
            "advice": self.advice,
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spanfs: {}", self.attempted)?;
        for reason in &self.reasons {
            write!(f, "\n  because: {reason}")?;
        }
        match &self.advice {
            Some(advice) => write!(f, "\n  try: {advice}"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_why_and_what_to_do() {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "no such directory");
        let failure = Failure::io("mounting a in /b", &cause).advise("mkdir /b");
        let text = "spanfs: mounting a in /b\n  because: no such directory\n  try: mkdir /b";
        assert_eq!(failure.to_string(), text);
        assert_eq!(failure.code(), Code::NotFound);
    }
}
