//! Programs that tell credentials: a JSON question on stdin, a JSON answer on stdout.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// They may ask a network; longer is a hang. The kubelet's own patience.
const DEADLINE: Duration = Duration::from_secs(60);
/// Far more than any token.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// A program and how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// A path, or a name to be found in `PATH`.
    pub(super) path: std::path::PathBuf,
    pub(super) arguments: Vec<String>,
    /// Beside the environment of this process.
    pub(super) environment: Vec<(String, String)>,
}

impl Program {
    /// Its answer to a question. An error never repeats what it said, which may hold anything.
    pub(super) async fn ask(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        self.ask_within(question, DEADLINE).await
    }

    async fn ask_within(&self, question: &[u8], at_most: Duration) -> Result<Vec<u8>, String> {
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot be started: {error}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let talk = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // One that ends without reading is told apart by its status.
                    let _closed = stdin.write_all(question).await;
                }
            };
            let mut answer = Vec::new();
            let read = async {
                match stdout {
                    Some(stdout) => {
                        stdout.take(ANSWER_LEN_MAX + 1).read_to_end(&mut answer).await.map(drop)
                    }
                    None => Ok(()),
                }
            };
            let ((), outcome) = tokio::join!(write, read);
            outcome?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(at_most, talk)
            .await
            .map_err(|_| format!("no answer within {at_most:?}"))?
            .map_err(|error| error.to_string())?;
        if answer.len() as u64 > ANSWER_LEN_MAX {
            return Err(format!("its answer is longer than {ANSWER_LEN_MAX} bytes"));
        }
        let status = tokio::time::timeout(at_most, child.wait())
            .await
            .map_err(|_| format!("it goes on after {at_most:?}"))?
            .map_err(|error| error.to_string())?;
        match status.success() {
            true => Ok(answer),
            false => Err(format!("ended with {status}")),
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or(Path::new("").as_os_str()).to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program {
            path: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec![("GIVEN".to_owned(), "there".to_owned())],
        }
    }

    #[tokio::test]
    async fn a_question_is_answered_or_it_is_said_why_not() {
        let answer = shell("cat; echo $GIVEN").ask(b"asked ").await.unwrap();
        assert_eq!(answer, b"asked there\n");
        let error = shell("echo hush >&2; exit 3").ask(b"").await.unwrap_err();
        assert!(error.contains("exit status: 3") && !error.contains("hush"), "{error}");
        let error = shell("yes").ask(b"").await.unwrap_err();
        assert!(error.contains("longer than"), "{error}");
        let brief = Duration::from_millis(50);
        let error = shell("sleep 60").ask_within(b"", brief).await.unwrap_err();
        assert!(error.contains("within 50ms"), "{error}");
        let none = Program { path: "/nonexistent/program".into(), ..shell("") };
        assert!(none.ask(b"").await.unwrap_err().contains("cannot be started"));
        assert_eq!(none.name(), "program");
    }
}
