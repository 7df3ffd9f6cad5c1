//! The executors that a reactor can run on in this build, for suites that compare them.

use vellum_rt::native::Config;

use crate::report::{Report, Row};

/// What the reports call a reactor on the default executor.
const NATIVE: &str = "vellum";

/// Each with its name in the reports, the default first.
pub fn all() -> Vec<(&'static str, Config)> {
    vec![
        (NATIVE, Config::default()),
        #[cfg(feature = "glommio")]
        ("vellum on glommio", Config { executor: vellum_rt::native::Executor::Glommio, ..Config::default() }),
    ]
}

/// Adds `row`; one of another executor than the default gets a note of its rate over the default's in the same case.
pub fn push(report: &mut Report, mut row: Row) {
    let native = report.rows.iter().find(|other| other.case == row.case && other.system == NATIVE);
    if let Some(native) = native.filter(|native| native.ops_per_s > 0.0) {
        let separator = if row.note.is_empty() { "" } else { "; " };
        row.note = format!("{}{separator}{:.2}x of native", row.note, row.ops_per_s / native.ops_per_s);
    }
    report.push(row);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recorder::{Recorder, Usage};

    #[test]
    fn another_executors_row_says_how_it_compares() {
        let row = |system: &str, ops: usize| {
            let mut recorder = Recorder::default();
            (0..ops).for_each(|_| recorder.record(Duration::from_micros(1), 1));
            Row::of("case", system, &recorder, Duration::from_secs(1), Usage::now().since(Usage::now()))
        };
        let mut report = Report::new("suite", "peer");
        push(&mut report, row(NATIVE, 100));
        push(&mut report, row("other", 40).note("noted"));
        assert_eq!(report.rows[0].note, "");
        assert_eq!(report.rows[1].note, "noted; 0.40x of native");
    }
}
