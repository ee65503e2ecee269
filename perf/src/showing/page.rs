//! The page: one file, nothing fetched, no script; light and dark, narrow and wide.
//!
//! Bars and lanes are boxes whose places are per cents of their row, so text keeps its size on a phone.

use std::fmt::Write as _;

use super::{Cell, cells};
use crate::results::{Figures, Head, Results, Run};
use crate::statistics::Estimate;

const STYLE: &str = include_str!("page.css");

pub(crate) fn page(results: &Results) -> String {
    let head = &results.head;
    let cells = cells(results);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>Pull to ready: {}</title>\n<style>\n{STYLE}</style></head><body>\n<main>\n",
        escape(&head.link.name)
    );
    introduction(&mut html, head);
    bars(&mut html, results, &cells);
    starts(&mut html, results);
    stalls(&mut html, results);
    figures(&mut html, &cells);
    missing(&mut html, results, &cells);
    reproduction(&mut html, head);
    html += "</main>\n</body></html>\n";
    html
}

fn introduction(html: &mut String, head: &Head) {
    let _ = write!(
        html,
        "<h1>From pull to ready</h1>\n<p class=\"lead\">{}. Caches {}, {} each, the order rotated. \
         Machine: {}.</p>\n",
        escape(&link(head)),
        escape(&head.caches),
        if head.runs == 1 { "1 run".to_owned() } else { format!("{} runs", head.runs) },
        escape(&head.machine)
    );
}

/// The link in words.
pub(super) fn link(head: &Head) -> String {
    let link = &head.link;
    let mut text = format!("Link “{}”: {} ms round trip", link.name, number(link.rtt_ms));
    match (link.mbit_per_second, link.connection_mbit_per_second) {
        (None, _) => text += ", as fast as the machine",
        (Some(all), None) => text += &format!(", {} Mbit/s", number(all)),
        (Some(all), Some(one)) => {
            text += &format!(", {} Mbit/s, {} a connection", number(all), number(one));
        }
    }
    for (value, what) in
        [(link.jitter_ms, "ms jitter"), (link.first_byte_ms, "ms to the first byte")]
    {
        if value > 0.0 {
            text += &format!(", {} {what}", number(value));
        }
    }
    if link.loss_per_mille > 0 {
        text += &format!(", {} ‰ of requests lose their connection", link.loss_per_mille);
    }
    text
}

fn bars(html: &mut String, results: &Results, cells: &[Cell<'_>]) {
    *html += "<h2>Seconds until ready</h2>\n<p>Median, with its 95 % bootstrap interval as a line. The \
              pale mark is what the program needs with everything local; what lies beyond it is the \
              cold penalty.</p>\n";
    for workload in &results.head.workloads {
        let rows: Vec<_> = cells.iter().filter(|cell| cell.workload == workload.name).collect();
        let ends = rows.iter().filter_map(|cell| cell.ready.map(|ready| ready.high));
        let scale = ends.fold(0.0, f64::max).max(1e-3);
        let floor = results.floor(&workload.name);
        let _ = writeln!(
            html,
            "<section class=\"card\"><h3>{} <small>{} MB in {} {}{}; ready: {}</small></h3>",
            escape(&workload.name),
            number(workload.compressed_bytes as f64 / 1e6),
            workload.layers,
            if workload.layers == 1 { "layer" } else { "layers" },
            if workload.is_indexed { "" } else { ", too small for a SOCI index, so never lazy" },
            escape(&workload.ready)
        );
        for cell in rows {
            let class = if cell.is_ours { "bar ours" } else { "bar" };
            let _ = write!(
                html,
                "<div class=\"row\"><span class=\"name\">{}</span><span class=\"track\">",
                escape(cell.subject)
            );
            if let Some(ready) = cell.ready {
                let share = |value: f64| value / scale * 100.0;
                let _ = write!(
                    html,
                    "<span class=\"{class}\" style=\"width:{:.2}%\"></span>\
                     <span class=\"whisker\" style=\"left:{:.2}%;width:{:.2}%\"></span>",
                    share(ready.value),
                    share(ready.low),
                    share(ready.high - ready.low)
                );
                if let Some(floor) = floor.filter(|floor| *floor < scale) {
                    let _ = write!(
                        html,
                        "<span class=\"floor\" style=\"left:{:.2}%\" title=\"everything local: {floor:.2} s\"></span>",
                        share(floor)
                    );
                }
                let _ =
                    writeln!(html, "</span><span class=\"value\">{:.2}</span></div>", ready.value);
            } else {
                *html += "</span><span class=\"value failed\">failed</span></div>\n";
            }
        }
        *html += "</section>\n";
    }
}

fn starts(html: &mut String, results: &Results) {
    *html += "<h2>One start of each</h2>\n<p class=\"legend\"><i class=\"pull\"></i>pull \
              <i class=\"make\"></i>container made and started <i class=\"wait\"></i>program, until ready \
              <i class=\"steady\"></i>steady phase <i class=\"stall\"></i>program waits for data. Below: \
              bytes on the link; each tick is a request for a blob.</p>\n";
    for workload in &results.head.workloads {
        let lanes =
            results.head.subjects.iter().filter_map(|subject| {
                Some((subject, results.typical(&workload.name, &subject.name)?))
            });
        let lanes: Vec<_> = lanes.collect();
        let end = |figures: &Figures| figures.steady.unwrap_or(figures.ready);
        let scale = lanes.iter().map(|(_, it)| end(it)).fold(1e-3, f64::max);
        if lanes.is_empty() {
            continue;
        }
        let rates = lanes.iter().map(|(_, figures)| rates(&figures.moved));
        let peak = rates.flatten().map(|(_, rate)| rate).fold(1.0, f64::max);
        let _ = writeln!(
            html,
            "<section class=\"card\"><h3>{} <small>{} s across, link up to {} MB/s</small></h3>",
            escape(&workload.name),
            number(scale),
            number(peak / 1e6)
        );
        for (subject, figures) in lanes {
            let _ = write!(
                html,
                "<div class=\"row lane\"><span class=\"name\">{}</span><span class=\"track\">",
                escape(&subject.name)
            );
            let mut from = 0.0;
            for (class, to) in [
                ("pull", figures.pull),
                ("make", figures.start),
                ("wait", figures.ready),
                ("steady", end(figures)),
            ] {
                if to > from {
                    let _ = write!(
                        html,
                        "<span class=\"phase {class}\" style=\"left:{:.2}%;width:{:.2}%\" title=\"{from:.2} to {to:.2} s\"></span>",
                        from / scale * 100.0,
                        (to - from) / scale * 100.0
                    );
                    from = to;
                }
            }
            for (at, len) in figures.stalls.iter().filter(|(at, _)| *at < scale) {
                let _ = write!(
                    html,
                    "<span class=\"phase stall\" style=\"left:{:.2}%;width:{:.2}%\"></span>",
                    at / scale * 100.0,
                    len / scale * 100.0
                );
            }
            *html += &curve(figures, scale, peak);
            *html += "</span></div>\n";
        }
        *html += "</section>\n";
    }
}

/// Bytes a second over spans of time, from the bytes so far.
fn rates(moved: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let pairs = moved.windows(2).filter_map(|pair| {
        let [(from, before), (to, after)] = pair else { return None };
        let seconds = to - from;
        (seconds > 0.0).then(|| ((from + to) / 2.0, after.saturating_sub(*before) as f64 / seconds))
    });
    pairs.collect()
}

fn curve(figures: &Figures, scale: f64, peak: f64) -> String {
    let mut path = String::from("M0 20");
    let mut last = 0.0;
    for (at, rate) in rates(&figures.moved) {
        last = (at / scale * 1000.0).min(1000.0);
        let _ = write!(path, "L{last:.1} {:.2}", 20.0 - rate / peak * 20.0);
    }
    let _ = write!(path, "L{last:.1} 20Z");
    let mut ticks = String::new();
    for (at, _) in figures.requests.iter().filter(|(at, _)| *at <= scale) {
        let _ = write!(ticks, "M{:.1} 20v4", at / scale * 1000.0);
    }
    format!(
        "<svg class=\"curve\" viewBox=\"0 0 1000 24\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <path class=\"area\" d=\"{path}\"/><path class=\"ticks\" d=\"{ticks}\"/></svg>"
    )
}

/// Upper ends of the histogram's classes in milliseconds; the last has none.
const CLASSES: [f64; 7] = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, f64::INFINITY];

fn stalls(html: &mut String, results: &Results) {
    let has_any =
        results.runs.iter().filter_map(|run| run.figures.as_ref()).any(|it| !it.stalls.is_empty());
    if !has_any {
        return;
    }
    *html += "<h2>How long programs wait for data</h2>\n<p>Times in which a process of the workload was \
              in uninterruptible sleep, looked at every 5 ms: seconds by the length of the wait, sums \
              over all starts that count, divided by their number.</p>\n<div class=\"scroll\"><table><thead><tr>\
              <th>workload</th><th>subject</th>";
    *html += &classes();
    *html += "<th>all</th></tr></thead><tbody>\n";
    for workload in &results.head.workloads {
        for subject in &results.head.subjects {
            let runs = results.counted(&workload.name, &subject.name);
            if runs.is_empty() {
                continue;
            }
            let sums = sums(&runs);
            let most = sums.iter().copied().fold(1e-9, f64::max);
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{}</td>",
                escape(&workload.name),
                escape(&subject.name)
            );
            for sum in sums {
                let _ = write!(
                    html,
                    "<td class=\"heat\" style=\"--share:{:.0}%\">{}</td>",
                    sum / most * 60.0,
                    if sum < 0.0005 { "·".to_owned() } else { format!("{sum:.3}") }
                );
            }
            let _ = writeln!(html, "<td>{:.3}</td></tr>", sums.iter().sum::<f64>());
        }
    }
    *html += "</tbody></table></div>\n";
}

/// Titles of the classes.
fn classes() -> String {
    let (mut html, mut from) = (String::new(), 0.0);
    for class in CLASSES {
        let text = match class.is_finite() {
            true => format!("{from:.0}–{class:.0} ms"),
            false => format!("over {from:.0} ms"),
        };
        let _ = write!(html, "<th>{text}</th>");
        from = class;
    }
    html
}

/// Seconds of waits in each class, for each run.
fn sums(runs: &[&Figures]) -> [f64; CLASSES.len()] {
    let mut sums = [0.0; CLASSES.len()];
    for (_, len) in runs.iter().flat_map(|figures| &figures.stalls) {
        let class = CLASSES.iter().position(|end| len * 1e3 <= *end);
        if let Some(sum) = class.and_then(|class| sums.get_mut(class)) {
            *sum += len / runs.len() as f64;
        }
    }
    sums
}

/// Titles of the table with every figure.
const TITLES: [&str; 21] = [
    "workload",
    "subject",
    "runs",
    "ready s",
    "95 %",
    "pull s",
    "penalty s",
    "steady s",
    "MB to ready",
    "MB in all",
    "requests",
    "connections",
    "CPU s",
    "CPU s/GB",
    "workload CPU s",
    "RSS MB",
    "disk MB",
    "written MB",
    "major faults",
    "FUSE requests",
    "shown by",
];

fn figures(html: &mut String, cells: &[Cell<'_>]) {
    *html += "<h2>Every figure</h2>\n<p>Medians of the runs that count. CPU seconds are those of \
              snapshotter and containerd together, in all and for each compressed gigabyte of the \
              image, then of the workload; RSS is the sum of both \
              daemons' peaks.</p>\n<div class=\"scroll\"><table><thead><tr>";
    for title in TITLES {
        let _ = write!(html, "<th>{title}</th>");
    }
    *html += "</tr></thead><tbody>\n";
    for cell in cells {
        let Some(ready) = cell.ready else { continue };
        let class = if cell.is_ours { " class=\"ours\"" } else { "" };
        let _ = write!(html, "<tr{class}>");
        for text in figures_of(cell, ready) {
            let _ = write!(html, "<td>{text}</td>");
        }
        *html += "</tr>\n";
    }
    *html += "</tbody></table></div>\n";
}

/// One under each of [`TITLES`].
fn figures_of(cell: &Cell<'_>, ready: Estimate) -> [String; TITLES.len()] {
    let seconds = |value: Option<f64>| value.map_or("–".to_owned(), |it| format!("{it:.2}"));
    let runs = match cell.disturbed {
        0 => cell.runs.to_string(),
        count => format!("{} ({count} disturbed)", cell.runs),
    };
    [
        escape(cell.workload),
        escape(cell.subject),
        runs,
        format!("{:.2}", ready.value),
        format!("{:.2} – {:.2}", ready.low, ready.high),
        format!("{:.2}", cell.pull),
        seconds(cell.penalty),
        seconds(cell.steady),
        format!("{:.1}", cell.bytes_until_ready / 1e6),
        format!("{:.1}", cell.bytes / 1e6),
        format!("{:.0}", cell.requests),
        format!("{:.0}", cell.connections),
        format!("{:.2}", cell.cpu),
        format!("{:.1}", cell.cpu_per_gigabyte),
        format!("{:.2}", cell.cpu_workload),
        format!("{:.0}", cell.rss / 1e6),
        format!("{:.0}", cell.disk / 1e6),
        format!("{:.0}", cell.written / 1e6),
        format!("{:.0}", cell.faults_major),
        cell.fuse_requests.map_or("–".to_owned(), |count| format!("{count:.0}")),
        escape(&cell.shown_by),
    ]
}

fn missing(html: &mut String, results: &Results, cells: &[Cell<'_>]) {
    let failed: Vec<_> = cells.iter().filter(|cell| cell.error.is_some()).collect();
    if !failed.is_empty() {
        *html += "<h2>Failures</h2>\n";
        for cell in failed {
            let is_failed = |run: &&Run| {
                run.workload == cell.workload && run.subject == cell.subject && run.error.is_some()
            };
            let _ = writeln!(
                html,
                "<p>{} with {}, {} times:</p><pre>{}</pre>",
                escape(cell.workload),
                escape(cell.subject),
                results.runs.iter().filter(is_failed).count(),
                escape(cell.error.unwrap_or_default().trim())
            );
        }
    }
    if !results.head.absent.is_empty() {
        *html += "<h2>Absent</h2>\n<ul>\n";
        for absent in &results.head.absent {
            let _ = writeln!(html, "<li>{}: {}</li>", escape(&absent.name), escape(&absent.reason));
        }
        *html += "</ul>\n";
    }
}

fn reproduction(html: &mut String, head: &Head) {
    *html += "<h2>How it was measured</h2>\n<p>Each start had a node of its own: mount, process and \
              network namespaces, empty roots, containerd and the snapshotter just started, and a \
              registry on loopback behind the link. It began with the pull and ended when the workload \
              was ready; then came the steady phase, and the same container once more for the warm \
              time.</p>\n<ul>\n";
    for subject in &head.subjects {
        let _ =
            writeln!(html, "<li><b>{}</b>: {}</li>", escape(&subject.name), escape(&subject.what));
    }
    let _ =
        write!(html, "</ul>\n<p>Once more:</p>\n<pre>{}</pre>\n", escape(&head.command.join(" ")));
}

/// As few digits as tell it.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn page_has_everything_and_hides_nothing() {
        let mut measured =
            results(&[("overlayfs", &[3.0, 3.1]), ("spanfs-lazy", &[1.0, 1.2])], 0.5);
        measured.runs.push(Run {
            workload: "w".to_owned(),
            subject: "overlayfs".to_owned(),
            error: Some("it <broke>".to_owned()),
            ..Run::default()
        });
        measured.head.absent.push(crate::results::Absent {
            name: "soci-lazy".to_owned(),
            reason: "not on PATH".to_owned(),
        });
        let html = page(&measured);
        for part in ["3.05", "1.10", "it &lt;broke&gt;", "soci-lazy: not on PATH"] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        for outside in ["http://", "https://", "<script", "src="] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn rates_are_differences() {
        assert_eq!(rates(&[(0.0, 0), (1.0, 10), (3.0, 10)]), [(0.5, 10.0), (2.0, 0.0)]);
    }
}
