//! Prometheus's text form, version 0.0.4.

use std::fmt::Write as _;

/// What a family of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Counter,
    Gauge,
    Histogram,
}

/// A text, family by family; and the name of the current one.
#[derive(Debug, Default)]
pub(super) struct Text(pub(super) String, &'static str);

// Writing to a text can't fail, so that nobody need look at what it returns.
impl Text {
    pub(super) fn family(&mut self, family: Family, name: &'static str, help: &str) {
        let kind = match family {
            Family::Counter => "counter",
            Family::Gauge => "gauge",
            Family::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.1 = name;
    }

    /// One line; `suffix` goes behind the name.
    pub(super) fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "{}{suffix}", self.1);
        for (number, (label, value)) in labels.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{value}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }
}
