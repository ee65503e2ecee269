//! Result files: JSON lines, a head and then a line a run. What is read may be of another machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cgroup::Usage;

/// Version of the fields. A reader refuses others.
pub(crate) const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Head(Box<Head>),
    Run(Box<Run>),
}

/// Under what circumstances everything below it was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) schema: u32,
    /// As it was typed.
    pub(crate) command: Vec<String>,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) machine: String,
    pub(crate) link: LinkFacts,
    /// `cold` or `warm`.
    pub(crate) caches: String,
    pub(crate) runs: usize,
    pub(crate) warm_up: usize,
    pub(crate) subjects: Vec<SubjectFacts>,
    /// Subjects that were asked for and are not here, each with the reason.
    pub(crate) absent: Vec<Absent>,
    pub(crate) workloads: Vec<WorkloadFacts>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkFacts {
    pub(crate) name: String,
    pub(crate) rtt_ms: f64,
    pub(crate) mbit_per_second: Option<f64>,
    pub(crate) connection_mbit_per_second: Option<f64>,
    pub(crate) jitter_ms: f64,
    pub(crate) first_byte_ms: f64,
    /// Of a thousand requests, how many lose their connection.
    pub(crate) loss_per_mille: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SubjectFacts {
    pub(crate) name: String,
    /// Programs with their versions, and the settings that differ from their defaults.
    pub(crate) what: String,
    pub(crate) is_ours: bool,
    pub(crate) is_eager: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Absent {
    pub(crate) name: String,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkloadFacts {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) layers: usize,
    pub(crate) compressed_bytes: u64,
    /// It has a SOCI index; without one, no subject is lazy.
    #[serde(default)]
    pub(crate) is_indexed: bool,
    pub(crate) command: Vec<String>,
    pub(crate) ready: String,
    pub(crate) steady: Vec<String>,
}

/// One start of one workload with one subject.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) workload: String,
    pub(crate) subject: String,
    /// Its number, from 0; warm-up runs come first.
    pub(crate) number: usize,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_warm_up: bool,
    /// Share of the machine's CPU time that others used meanwhile, where it was too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disturbed: Option<f64>,
    /// Why it failed; then there are no figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) figures: Option<Figures>,
}

/// What one start took. Times are seconds since the pull began, unless said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// The pull was over.
    pub(crate) pull: f64,
    /// The container was made.
    pub(crate) create: f64,
    /// Its program was asked to start.
    pub(crate) start: f64,
    pub(crate) ready: f64,
    /// The steady phase was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) steady: Option<f64>,
    /// The same container started again, all of it local: from its making to ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warm: Option<f64>,
    /// Of the registry, until ready and until the end of the steady phase.
    pub(crate) link: LinkUse,
    /// By component: snapshotter, containerd, workload.
    pub(crate) usage: BTreeMap<String, Usage>,
    /// CPU seconds of the whole machine until ready; files of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_until_ready: Option<f64>,
    /// Bytes, by component.
    pub(crate) rss_peak: BTreeMap<String, u64>,
    /// Bytes that containerd and the snapshotter had the kernel write.
    pub(crate) written_bytes: u64,
    /// Bytes of disk below their roots at the end.
    pub(crate) disk_bytes: u64,
    /// Requests of the kernel to all FUSE servers of this machine, where it can be told to count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fuse_requests: Option<u64>,
    /// File system types that the image is shown by, each with how many mounts.
    #[serde(default)]
    pub(crate) mounts: BTreeMap<String, usize>,
    /// When blobs were asked for: seconds, and bytes.
    pub(crate) requests: Vec<(f64, u64)>,
    /// Bytes on the link so far, by time.
    pub(crate) moved: Vec<(f64, u64)>,
    /// When a process of the workload waited for data, and how long.
    #[serde(default)]
    pub(crate) stalls: Vec<(f64, f64)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LinkUse {
    pub(crate) bytes: u64,
    pub(crate) bytes_until_ready: u64,
    pub(crate) requests: u64,
    pub(crate) connections: u64,
}

/// A result file in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    pub(crate) head: Head,
    pub(crate) runs: Vec<Run>,
}

impl Results {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading results from {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("reading results from {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut results: Option<Self> = None;
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("line {number} is not one of results"))?;
            match (line, &mut results) {
                (Line::Head(head), None) => {
                    ensure!(
                        head.schema == SCHEMA,
                        "results of version {}, this program reads {SCHEMA}",
                        head.schema
                    );
                    results = Some(Self { head: *head, runs: Vec::new() });
                }
                // Several files in one: the same circumstances, other workloads or subjects.
                (Line::Head(head), Some(results)) => results.join(*head)?,
                (Line::Run(run), Some(results)) => results.runs.push(*run),
                (Line::Run(_), None) => bail!("line {number} is a run without a head before it"),
            }
        }
        results.context("the file is empty")
    }

    fn join(&mut self, head: Head) -> Result<()> {
        let one = &mut self.head;
        ensure!(
            (one.schema, &one.machine, &one.link, &one.caches)
                == (head.schema, &head.machine, &head.link, &head.caches),
            "results of different machines, links or caches can't be joined"
        );
        one.command.push("&&".to_owned());
        one.command.extend(head.command);
        for subject in head.subjects {
            if one.subjects.iter().all(|known| known.name != subject.name) {
                one.subjects.push(subject);
            }
        }
        for absent in head.absent {
            if one.absent.iter().all(|known| known.name != absent.name) {
                one.absent.push(absent);
            }
        }
        for workload in head.workloads {
            if one.workloads.iter().all(|known| known.name != workload.name) {
                one.workloads.push(workload);
            }
        }
        Ok(())
    }

    /// Runs that count: no warm-up, and of a workload with a subject those undisturbed where there
    /// are any.
    pub(crate) fn counted(&self, workload: &str, subject: &str) -> Vec<&Figures> {
        let runs = self
            .runs
            .iter()
            .filter(|run| run.workload == workload && run.subject == subject && !run.is_warm_up);
        let (quiet, disturbed): (Vec<_>, Vec<_>) = runs.partition(|run| run.disturbed.is_none());
        let quiet: Vec<_> = quiet.iter().filter_map(|run| run.figures.as_ref()).collect();
        if quiet.is_empty() {
            return disturbed.iter().filter_map(|run| run.figures.as_ref()).collect();
        }
        quiet
    }

    /// Whether others were at work during all runs that count.
    pub(crate) fn is_disturbed(&self, workload: &str, subject: &str) -> bool {
        let mut runs = self.runs.iter().filter(|run| {
            run.workload == workload && run.subject == subject && run.figures.is_some()
        });
        !runs.any(|run| !run.is_warm_up && run.disturbed.is_none())
    }

    /// The start in the middle of those that count.
    pub(crate) fn typical(&self, workload: &str, subject: &str) -> Option<&Figures> {
        let mut runs = self.counted(workload, subject);
        runs.sort_by(|a, b| a.ready.total_cmp(&b.ready));
        runs.get(runs.len().checked_sub(1)? / 2).copied()
    }

    /// The first error of a workload with a subject.
    pub(crate) fn error(&self, workload: &str, subject: &str) -> Option<&str> {
        let mut runs =
            self.runs.iter().filter(|run| run.workload == workload && run.subject == subject);
        runs.find_map(|run| run.error.as_deref())
    }

    /// What the program itself needs, everything local: the least that any subject took for it.
    pub(crate) fn floor(&self, workload: &str) -> Option<f64> {
        let of = |subject: &SubjectFacts| {
            let warm = self.counted(workload, &subject.name).into_iter().filter_map(|it| it.warm);
            crate::statistics::median(&warm.collect::<Vec<_>>())
        };
        self.head.subjects.iter().filter_map(of).min_by(f64::total_cmp)
    }
}

/// A result file that grows by a line a run.
pub(crate) struct Writer(File);

impl Writer {
    pub(crate) fn create(path: &Path, head: &Head) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = File::create(path)
            .with_context(|| format!("making the result file {}", path.display()))?;
        let mut writer = Self(file);
        writer.line(&Line::Head(Box::new(head.clone())))?;
        Ok(writer)
    }

    pub(crate) fn run(&mut self, run: &Run) -> Result<()> {
        self.line(&Line::Run(Box::new(run.clone())))
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        self.0.write_all(text.as_bytes()).context("writing a result")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results of one workload: by subject its times until ready, and one warm time for all.
    pub(crate) fn results(subjects: &[(&str, &[f64])], warm: f64) -> Results {
        let facts = |name: &str| SubjectFacts {
            name: name.to_owned(),
            what: String::new(),
            is_ours: name.starts_with("spanfs"),
            is_eager: !name.contains("lazy"),
        };
        let head = Head {
            schema: SCHEMA,
            subjects: subjects.iter().map(|(name, _)| facts(name)).collect(),
            workloads: vec![WorkloadFacts {
                name: "w".to_owned(),
                image: "w".to_owned(),
                layers: 1,
                compressed_bytes: 1,
                is_indexed: true,
                command: Vec::new(),
                ready: String::new(),
                steady: Vec::new(),
            }],
            ..Head::default()
        };
        let run = |subject: &str, number, ready| Run {
            workload: "w".to_owned(),
            subject: subject.to_owned(),
            number,
            figures: Some(Figures { ready, warm: Some(warm), ..Figures::default() }),
            ..Run::default()
        };
        let runs = subjects.iter().flat_map(|(name, times)| {
            times.iter().enumerate().map(|(number, time)| run(name, number, *time))
        });
        Results { runs: runs.collect(), head }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = results(&[("overlayfs", &[3.0, 4.0])], 1.0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        let mut writer = Writer::create(&path, &written.head).unwrap();
        for run in &written.runs {
            writer.run(run).unwrap();
        }
        let read = Results::read(&path).unwrap();
        assert_eq!(read.counted("w", "overlayfs").len(), 2);
        assert_eq!(read.floor("w"), Some(1.0));
        for (text, expected) in [
            ("", "empty"),
            ("{}", "line 1"),
            (
                "{\"kind\":\"run\",\"workload\":\"w\",\"subject\":\"s\",\"number\":0}",
                "without a head",
            ),
        ] {
            let error = format!("{:#}", Results::parse(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn disturbed_runs_count_only_where_there_are_no_others() {
        let mut written = results(&[("overlayfs", &[3.0, 9.0])], 1.0);
        written.runs[1].disturbed = Some(0.5);
        assert_eq!(written.counted("w", "overlayfs").len(), 1);
        written.runs.remove(0);
        assert_eq!(written.counted("w", "overlayfs").len(), 1);
    }
}
