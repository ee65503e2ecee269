//! The picture of a README: bars with their intervals, one block a workload. It follows the reader's
//! choice of light or dark.

use std::fmt::Write as _;

use super::page::{escape, link, number};
use super::{Cell, cells};
use crate::results::Results;

const WIDTH: f64 = 840.0;
const ROW: f64 = 22.0;
const BLOCK: f64 = 34.0;
const NAMES: f64 = 170.0;
const VALUES: f64 = 70.0;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1b1d20}.h{font-weight:600}.m{fill:#5c6168}\
.o{fill:#a3a8b0}.s{fill:#1f6fd0}.w{stroke:#1b1d20;stroke-width:2}.f{stroke:#5c6168;stroke-dasharray:2 2}\
@media(prefers-color-scheme:dark){text{fill:#eceded}.m{fill:#a0a6ae}.o{fill:#6c727b}.s{fill:#5b9df0}\
.w{stroke:#eceded}.f{stroke:#a0a6ae}}";

pub(crate) fn picture(results: &Results) -> String {
    let cells = cells(results);
    let mut body = String::new();
    let mut y = 26.0;
    let _ = writeln!(
        body,
        "<text class=\"h\" x=\"0\" y=\"16\">Seconds from pull to ready</text>\n\
         <text class=\"m\" x=\"{WIDTH}\" y=\"16\" text-anchor=\"end\">{}</text>",
        escape(&link(&results.head))
    );
    for workload in &results.head.workloads {
        let rows: Vec<_> = cells.iter().filter(|cell| cell.workload == workload.name).collect();
        if rows.is_empty() {
            continue;
        }
        y += BLOCK;
        let _ = writeln!(
            body,
            "<text class=\"h\" x=\"0\" y=\"{:.0}\">{} <tspan class=\"m\">{} MB</tspan></text>",
            y - 10.0,
            escape(&workload.name),
            number(workload.compressed_bytes as f64 / 1e6)
        );
        let ends = rows.iter().filter_map(|cell| cell.ready.map(|ready| ready.high));
        let scale = ends.fold(1e-3, f64::max);
        let from = y;
        for cell in rows {
            row(&mut body, cell, y, scale);
            y += ROW;
        }
        if let Some(floor) = results.floor(&workload.name).filter(|floor| *floor < scale) {
            let x = NAMES + floor / scale * (WIDTH - NAMES - VALUES);
            let _ = writeln!(
                body,
                "<line class=\"f\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{:.0}\"/>",
                from - 2.0,
                y - 2.0
            );
        }
    }
    y += 26.0;
    let _ = writeln!(
        body,
        "<text class=\"m\" x=\"0\" y=\"{:.0}\">Bar: median; line: 95 % interval; dashed: the program with \
         everything local.</text>",
        y - 6.0
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
         role=\"img\" aria-label=\"Seconds from pull to ready\"><style>{STYLE}</style>\n{body}</svg>\n"
    )
}

fn row(body: &mut String, cell: &Cell<'_>, y: f64, scale: f64) {
    let _ = write!(
        body,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
        NAMES - 8.0,
        y + 13.0,
        escape(cell.subject)
    );
    let Some(ready) = cell.ready else {
        let _ =
            writeln!(body, "<text class=\"m\" x=\"{NAMES}\" y=\"{:.0}\">failed</text>", y + 13.0);
        return;
    };
    let x = |value: f64| NAMES + value / scale * (WIDTH - NAMES - VALUES);
    let _ = writeln!(
        body,
        "<rect class=\"{}\" x=\"{NAMES}\" y=\"{:.0}\" width=\"{:.1}\" height=\"14\" rx=\"2\"/>\
         <line class=\"w\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.0}\" y2=\"{:.0}\"/>\
         <text x=\"{:.1}\" y=\"{:.0}\">{:.2} s</text>",
        if cell.is_ours { "s" } else { "o" },
        y + 2.0,
        (x(ready.value) - NAMES).max(1.0),
        x(ready.low),
        x(ready.high),
        y + 9.0,
        y + 9.0,
        x(ready.high) + 6.0,
        y + 13.0,
        ready.value
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn picture_is_whole() {
        let measured = results(&[("overlayfs", &[3.0, 3.1]), ("spanfs-lazy", &[1.0, 1.2])], 0.5);
        let svg = picture(&measured);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("3.05 s") && svg.contains("1.10 s"), "{svg}");
    }
}
