//! Rows and ratios, as a table for people and as JSON for tools.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::recorder::{Recorder, Usage};

/// One case on one system.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Row {
    pub case: String,
    pub system: String,
    pub ops: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub ops_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// CPU time of the benchmark's own process, engine included when it is embedded.
    pub cpu_us_per_op: f64,
    pub device_bytes_per_op: f64,
    /// What else the case knows, such as flushes per operation.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Row {
    pub fn of(case: &str, system: &str, r: &Recorder, elapsed: Duration, used: Usage) -> Row {
        let ops = r.ops().max(1) as f64;
        let seconds = elapsed.as_secs_f64();
        Row {
            case: case.into(),
            system: system.into(),
            ops: r.ops(),
            bytes: r.bytes(),
            seconds,
            ops_per_s: r.ops() as f64 / seconds.max(1e-9),
            p50_us: r.quantile_us(0.5),
            p99_us: r.quantile_us(0.99),
            max_us: r.max_us(),
            cpu_us_per_op: used.cpu_us as f64 / ops,
            device_bytes_per_op: used.device_write_bytes as f64 / ops,
            note: String::new(),
        }
    }

    pub fn mb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds.max(1e-9)
    }

    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }
}

/// What a ratio compares.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Operations per second: more is better.
    Rate,
    /// Bytes on the device per operation: less is better.
    DeviceBytes,
}

/// All rows of one suite. Ratios are taken against `baseline` (a peer or a limit of the same run).
#[derive(Serialize, Clone, Debug)]
pub struct Report {
    pub suite: String,
    pub baseline: String,
    pub by: By,
    pub rows: Vec<Row>,
    /// What a reader should know besides, such as a peer that is missing.
    pub remarks: Vec<String>,
}

impl Report {
    pub fn new(suite: &str, baseline: &str) -> Report {
        Report { suite: suite.into(), baseline: baseline.into(), by: By::Rate, rows: Vec::new(), remarks: Vec::new() }
    }

    /// Ratios are of bytes on the device.
    pub fn by_device_bytes(self) -> Report {
        Report { by: By::DeviceBytes, ..self }
    }

    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    fn measure(&self, row: &Row) -> f64 {
        match self.by {
            By::Rate => row.ops_per_s,
            By::DeviceBytes => row.device_bytes_per_op,
        }
    }

    /// `row` over the baseline's in the same case; none for the baseline itself.
    pub fn ratio(&self, row: &Row) -> Option<f64> {
        let base = self.rows.iter().find(|r| r.case == row.case && r.system == self.baseline)?;
        (row.system != self.baseline && self.measure(base) > 0.0).then(|| self.measure(row) / self.measure(base))
    }

    /// Notes what `system` reaches of the lowest of `limits` in `case`, beside its ratio to the baseline.
    pub fn compare(&mut self, case: &str, system: &str, limits: &[&str]) {
        let rows = self.rows.iter().filter(|r| r.case == case && limits.contains(&r.system.as_str()));
        let Some(limit) = rows.map(|r| self.measure(r)).reduce(f64::min).filter(|limit| *limit > 0.0) else { return };
        let what = if limits.len() > 1 { format!("the lower of {}", limits.join(" and ")) } else { limits.join("") };
        let Some(at) = self.rows.iter().position(|r| r.case == case && r.system == system) else { return };
        let ratio = self.measure(&self.rows[at]) / limit;
        self.rows[at].note = format!("{ratio:.2}x of {what}");
    }

    pub fn json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let mut v = serde_json::to_value(row).unwrap_or_default();
                if let Some(ratio) = self.ratio(row) {
                    v["ratio_to_baseline"] = ratio.into();
                }
                v
            })
            .collect();
        let (suite, baseline, by, remarks) = (&self.suite, &self.baseline, self.by, &self.remarks);
        serde_json::json!({ "suite": suite, "baseline": baseline, "by": by, "rows": rows, "remarks": remarks })
    }

    pub fn table(&self) -> String {
        let what = match self.by {
            By::Rate => "ratios",
            By::DeviceBytes => "ratios of device bytes",
        };
        let mut out = format!("{} ({what} against: {})\n", self.suite, self.baseline);
        let _ = writeln!(
            out,
            "{:<22} {:<16} {:>11} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>7}  note",
            "case", "system", "ops/s", "MB/s", "p50 us", "p99 us", "max us", "cpu us/op", "dev B/op", "ratio"
        );
        for row in &self.rows {
            let ratio = self.ratio(row).map_or(String::new(), |r| format!("{r:.2}x"));
            let mb = if row.bytes > 0 { format!("{:.0}", row.mb_per_s()) } else { String::new() };
            let _ = writeln!(
                out,
                "{:<22} {:<16} {:>11.0} {:>9} {:>9.1} {:>9.1} {:>10.0} {:>9.2} {:>9.0} {:>7}  {}",
                row.case,
                row.system,
                row.ops_per_s,
                mb,
                row.p50_us,
                row.p99_us,
                row.max_us,
                row.cpu_us_per_op,
                row.device_bytes_per_op,
                ratio,
                row.note
            );
        }
        for remark in &self.remarks {
            let _ = writeln!(out, "{remark}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_case() {
        let row = |case: &str, system: &str, ops| {
            let mut r = Recorder::default();
            (0..ops).for_each(|_| r.record(Duration::from_micros(1), 0));
            Row::of(case, system, &r, Duration::from_secs(1), Usage::default())
        };
        let mut report = Report::new("s", "peer");
        report.push(row("a", "peer", 10));
        report.push(row("a", "vellum", 20));
        report.push(row("b", "vellum", 20));
        assert_eq!(report.ratio(&report.rows[0]), None);
        assert_eq!(report.ratio(&report.rows[1]), Some(2.0));
        assert_eq!(report.ratio(&report.rows[2]), None);
        report.push(row("a", "device", 5));
        report.compare("a", "vellum", &["peer", "device"]);
        assert_eq!(report.rows[1].note, "4.00x of the lower of peer and device");
        assert!(report.table().contains("2.00x"));
        assert_eq!(report.json()["rows"][1]["ratio_to_baseline"], 2.0);
        report.remarks.push("a peer is missing".into());
        assert!(report.table().ends_with("\na peer is missing\n"));
        assert_eq!(report.json()["remarks"][0], "a peer is missing");
    }
}
