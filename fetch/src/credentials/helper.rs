//! Programs that keep credentials, by the protocol of `docker-credential-helpers`.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{CredentialsError, Login, Secret};

/// More than any token; a helper that says more is broken.
const ANSWER_LEN_MAX: u64 = 256 << 10;
/// What helpers print where they have nothing for a server.
const NOT_FOUND: &str = "credentials not found";

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// How helpers are run.
pub(super) struct Helpers<'a> {
    /// `PATH` to find them in; `None`: that of this process.
    pub(super) path: Option<&'a OsStr>,
    /// Time for one answer.
    pub(super) deadline: Duration,
}

impl Helpers<'_> {
    /// Ask `docker-credential-NAME get` for a server; `None` if it knows nothing of it.
    pub(super) async fn ask(
        &self,
        name: &str,
        server: &str,
    ) -> Result<Option<Login>, CredentialsError> {
        let program = format!("docker-credential-{name}");
        self.run(&program, server).await.map_err(|reason| CredentialsError::Helper {
            program,
            server: server.to_owned(),
            reason,
        })
    }

    async fn run(&self, program: &str, server: &str) -> Result<Option<Login>, String> {
        if program.contains('/') {
            return Err("name contains a slash".to_owned());
        }
        let mut command = Command::new(program);
        if let Some(path) = self.path {
            command.env("PATH", path);
        }
        let child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot be started: {error}"))?;
        let (status, output) = tokio::time::timeout(self.deadline, converse(child, server))
            .await
            .map_err(|_| format!("no answer within {:?}", self.deadline))?
            .map_err(|error| error.to_string())?;
        if output.len() as u64 > ANSWER_LEN_MAX {
            return Err(format!("answer is longer than {ANSWER_LEN_MAX} bytes"));
        }
        match status.success() {
            true => parse(&output),
            false if String::from_utf8_lossy(&output).contains(NOT_FOUND) => Ok(None),
            // Its text may hold anything, so it is not repeated.
            false => Err(format!("ended with {status}")),
        }
    }
}

fn parse(output: &[u8]) -> Result<Option<Login>, String> {
    let answer: Answer = serde_json::from_slice(output)
        .map_err(|_| "answer is not JSON with Username and Secret".to_owned())?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let password = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" | "" => Login::IdentityToken(password),
        _ => Login::Password { username: answer.username, password },
    }))
}

async fn converse(
    mut child: Child,
    server: &str,
) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that exits without reading is told apart by its status, not by this pipe.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_LEN_MAX + 1).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}
