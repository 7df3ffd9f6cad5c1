//! Reports of several suites as one JSON and one HTML page with a plot for each.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::report::{By, Report};

/// A suite's report, or why it did not run.
pub struct Ran {
    pub suite: String,
    pub result: Result<Report>,
}

/// Writes `DIR/bench.json` and `DIR/bench.html`.
pub fn write(dir: &Path, ran: &[Ran], quick: bool) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let json: Vec<_> = ran.iter().map(Ran::json).collect();
    let json = serde_json::json!({ "machine": machine(), "quick": quick, "suites": json });
    std::fs::write(dir.join("bench.json"), format!("{json:#}\n"))?;
    std::fs::write(dir.join("bench.html"), page(ran, quick)?)?;
    Ok(())
}

impl Ran {
    fn json(&self) -> serde_json::Value {
        match &self.result {
            Ok(report) => report.json(),
            Err(error) => serde_json::json!({ "suite": self.suite, "error": format!("{error:#}") }),
        }
    }
}

/// What a reader of figures must know about where they were made.
fn machine() -> serde_json::Value {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let uname = rustix::system::uname();
    serde_json::json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "kernel": uname.release().to_string_lossy(),
        "vellum": env!("CARGO_PKG_VERSION"),
    })
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;font-size:13px;width:100%}td,th{padding:.2em .6em;text-align:right;\
    border-bottom:1px solid #ddd}td:first-child,td:nth-child(2),td:last-child,th:first-child,th:nth-child(2)\
    {text-align:left}svg{max-width:100%}";

fn page(ran: &[Ran], quick: bool) -> Result<String> {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Vellum: benchmarks</title><style>{STYLE}</style>\
         <h1>Vellum: benchmarks</h1><p>{}{}</p>",
        escape(&machine().to_string()),
        if quick { " Shortened sizes: figures are worth little." } else { "" }
    );
    for one in ran {
        let _ = write!(html, "<h2>{}</h2>", escape(&one.suite));
        match &one.result {
            Ok(report) => html.push_str(&section(report)?),
            Err(error) => {
                let _ = write!(html, "<p>Not run: {}</p>", escape(&format!("{error:#}")));
            }
        }
    }
    html.push_str("</html>\n");
    Ok(html)
}

fn section(report: &Report) -> Result<String> {
    let better = match report.by {
        By::Rate => "more is better",
        By::DeviceBytes => "bytes on the device: less is better",
    };
    let mut html = plot(report)?;
    let _ = write!(html, "<p>Ratios are against <em>{}</em>; {better}.</p><table><tr>", escape(&report.baseline));
    for head in ["case", "system", "ops/s", "MB/s", "p50 us", "p99 us", "max us", "cpu us/op", "dev B/op", "ratio", ""]
    {
        let _ = write!(html, "<th>{head}</th>");
    }
    for row in &report.rows {
        let ratio = report.ratio(row).map_or(String::new(), |ratio| format!("{ratio:.2}x"));
        let _ = write!(
            html,
            "</tr><tr><td>{}</td><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.1}</td><td>{:.1}</td><td>{:.0}</td>\
             <td>{:.2}</td><td>{:.0}</td><td>{ratio}</td><td>{}</td>",
            escape(&row.case),
            escape(&row.system),
            row.ops_per_s,
            row.mb_per_s(),
            row.p50_us,
            row.p99_us,
            row.max_us,
            row.cpu_us_per_op,
            row.device_bytes_per_op,
            escape(&row.note)
        );
    }
    html.push_str("</tr></table>");
    for remark in &report.remarks {
        let _ = write!(html, "<p>{}</p>", escape(remark));
    }
    Ok(html)
}

/// A bar per row that has a ratio, and a line at the baseline.
fn plot(report: &Report) -> Result<String> {
    let bars: Vec<(String, f64)> = report
        .rows
        .iter()
        .filter_map(|row| Some((format!("{}, {}", row.case, row.system), report.ratio(row)?)))
        .collect();
    if bars.is_empty() {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 60 + 24 * bars.len() as u32)).into_drawing_area();
        let top = bars.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max) * 1.1;
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(330)
            .build_cartesian_2d(0.0..top, (0..bars.len()).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(bars.len())
            .y_label_formatter(&|at| match at {
                SegmentValue::CenterOf(n) => bars.get(*n).map_or(String::new(), |(name, _)| name.clone()),
                _ => String::new(),
            })
            .draw()?;
        chart.draw_series(bars.iter().enumerate().map(|(n, (_, ratio))| {
            let mut bar = Rectangle::new(
                [(0.0, SegmentValue::Exact(n)), (*ratio, SegmentValue::Exact(n + 1))],
                RGBColor(70, 110, 160).filled(),
            );
            bar.set_margin(4, 4, 0, 0);
            bar
        }))?;
        let line = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(bars.len()))];
        chart.draw_series(std::iter::once(PathElement::new(line, BLACK.stroke_width(2))))?;
        area.present()?;
    }
    Ok(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recorder::{Recorder, Usage};
    use crate::report::Row;

    #[test]
    fn a_report_has_every_suite_also_one_that_failed() {
        let mut report = Report::new("walk", "find");
        for (system, ops) in [("find", 10), ("vellum", 30)] {
            let mut recorder = Recorder::default();
            (0..ops).for_each(|_| recorder.record(Duration::from_micros(3), 0));
            report.push(Row::of("a <case>", system, &recorder, Duration::from_secs(1), Usage::default()));
        }
        report.remarks.push("one <peer> is missing".into());
        let ran = [
            Ran { suite: "walk".into(), result: Ok(report) },
            Ran { suite: "mount".into(), result: Err(anyhow::anyhow!("root is needed")) },
        ];
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &ran, true).unwrap();
        let html = std::fs::read_to_string(dir.path().join("bench.html")).unwrap();
        assert!(html.contains("<svg") && html.contains("3.00x") && html.contains("a &lt;case&gt;"), "{html}");
        assert!(html.contains("root is needed") && html.contains("one &lt;peer&gt; is missing"));
        let json = std::fs::read_to_string(dir.path().join("bench.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["suites"][0]["rows"][1]["ratio_to_baseline"], 3.0);
        assert_eq!(json["suites"][1]["error"], "root is needed");
    }
}
