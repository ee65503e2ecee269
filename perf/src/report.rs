//! Rows of results: printed as they come, kept as JSON lines.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

/// Version of the JSON lines' fields.
const SCHEMA: u32 = 1;

/// Which side of the goal is good.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// The value must not exceed this.
    AtMost(f64),
    /// The value must reach this.
    AtLeast(f64),
    /// Told for the reader alone.
    None,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) promise: &'static str,
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Goal,
}

impl Row {
    fn verdict(&self) -> &'static str {
        match self.goal {
            Goal::AtMost(limit) if self.value <= limit => "met",
            Goal::AtLeast(limit) if self.value >= limit => "met",
            Goal::None => "",
            _ => "MISSED",
        }
    }
}

/// All rows of a run.
pub(crate) struct Report {
    file: Option<File>,
    machine: String,
    missed: usize,
}

impl Report {
    pub(crate) fn new(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let file =
            path.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        let machine = machine();
        println!("machine: {machine}");
        println!("{:<14} {:<62} {:>10} {:<6} goal", "promise", "what", "value", "unit");
        Ok(Self { file, machine, missed: 0 })
    }

    pub(crate) fn row(&mut self, row: &Row) -> anyhow::Result<()> {
        let goal = match row.goal {
            Goal::AtMost(limit) => format!("<= {limit:.2} {}", row.verdict()),
            Goal::AtLeast(limit) => format!(">= {limit:.2} {}", row.verdict()),
            Goal::None => String::new(),
        };
        println!("{:<14} {:<62} {:>10.3} {:<6} {goal}", row.promise, row.what, row.value, row.unit);
        if row.verdict() == "MISSED" {
            self.missed += 1;
        }
        if let Some(file) = &mut self.file {
            let line = serde_json::json!({
                "schema": SCHEMA, "machine": self.machine, "row": row, "verdict": row.verdict(),
            });
            writeln!(file, "{line}")?;
        }
        Ok(())
    }

    /// A promise that could not be measured is a row too, never silence.
    pub(crate) fn failed(&mut self, promise: &str, error: &anyhow::Error) {
        println!("{promise:<14} FAILED: {error:#}");
        self.missed += 1;
    }

    pub(crate) fn finish(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.missed == 0, "{} goals missed or not measured", self.missed);
        Ok(())
    }
}

/// Cores, processor, memory and kernel in one line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kib: u64 = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores, {model}, {} GiB, Linux {}", kib >> 20, kernel.trim())
}
