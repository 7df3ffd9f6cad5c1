//! The status as Prometheus text (exposition format 0.0.4): every number of it is a metric, named by its path. A list whose
//! elements are numbered ("reactor", "slot") gives labels; other lists, which name clients, are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// Last words of names that only grow.
const COUNTERS: &[&str] = &[
    "granted",
    "invalidations",
    "batches",
    "epochs_with_changes",
    "slowed_batches",
    "slowed_ms",
    "done",
    "done_elsewhere",
    "failed",
    "lost",
    "clients_reclaimed",
    "elections",
    "elected",
    "deposed",
    "fences",
    "fences_failed",
    "late_wakes",
    "splits",
    "shards_moved",
    "moves_given_up",
    "dropped",
    "ignored",
    "write_errors",
    "passes",
    "moved_bytes",
    "moved_extents",
    "emptied_chunks",
];
/// Lists with a label per element.
const LABELS: &[&str] = &["reactor", "slot"];
const QUANTILES: &[(&str, &str)] = &[("p50", "0.5"), ("p99", "0.99"), ("p999", "0.999"), ("max", "1")];

#[derive(Default)]
struct Page {
    metrics: BTreeMap<String, Metric>,
}

struct Metric {
    kind: &'static str,
    /// Suffix of the name, labels, value.
    samples: Vec<(&'static str, String, f64)>,
}

pub(crate) fn render(status: &Value) -> String {
    let mut page = Page::default();
    page.walk("vellum", "", status);
    let info: Vec<String> =
        ["fsid", "role"].iter().filter_map(|name| Some(label(name, status[name].as_str()?))).collect();
    page.add("vellum_info", "gauge", "", &info.join(","), 1.0);
    page.print()
}

fn label(name: &str, value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{escaped}\"")
}

impl Page {
    fn add(&mut self, name: &str, kind: &'static str, suffix: &'static str, labels: &str, value: f64) {
        let metric = self.metrics.entry(name.to_string()).or_insert(Metric { kind, samples: Vec::new() });
        metric.samples.push((suffix, labels.to_string(), value));
    }

    fn walk(&mut self, name: &str, labels: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("latencies_us", Value::Object(kinds)) => {
                            kinds.iter().for_each(|(kind, figures)| self.summary(kind, labels, figures));
                        }
                        (key, _) if LABELS.contains(&key) && !labels.is_empty() => {}
                        (key, Value::Array(list)) => self.list(&format!("{name}_{}", singular(key)), labels, list),
                        (key, value) => self.walk(&format!("{name}_{}", legal(key)), labels, value),
                    }
                }
            }
            Value::Number(number) => {
                if let Some(value) = number.as_f64() {
                    let counter = COUNTERS.iter().any(|last| name.ends_with(&format!("_{last}")));
                    self.add(name, if counter { "counter" } else { "gauge" }, "", labels, value);
                }
            }
            Value::Bool(value) => self.add(name, "gauge", "", labels, f64::from(u8::from(*value))),
            Value::Null | Value::String(_) | Value::Array(_) => {}
        }
    }

    fn list(&mut self, name: &str, labels: &str, list: &[Value]) {
        for element in list {
            let number = LABELS.iter().find_map(|by| Some((by, element.get(by)?.as_u64()?)));
            if let Some((by, number)) = number {
                let comma = if labels.is_empty() { "" } else { "," };
                self.walk(name, &format!("{labels}{comma}{}", label(by, &number.to_string())), element);
            }
        }
    }

    fn summary(&mut self, kind: &str, labels: &str, figures: &Value) {
        let name = format!("vellum_{}_seconds", legal(kind));
        let seconds = |figure: &str| figures[figure].as_f64().map(|us| us / 1e6);
        let comma = if labels.is_empty() { "" } else { "," };
        for (figure, quantile) in QUANTILES {
            if let Some(value) = seconds(figure) {
                let labels = format!("{labels}{comma}{}", label("quantile", quantile));
                self.add(&name, "summary", "", &labels, value);
            }
        }
        if let (Some(sum), Some(count)) = (seconds("sum"), figures["count"].as_f64()) {
            self.add(&name, "summary", "_sum", labels, sum);
            self.add(&name, "summary", "_count", labels, count);
        }
    }

    fn print(&self) -> String {
        let mut out = String::new();
        for (name, metric) in &self.metrics {
            let _ = writeln!(out, "# TYPE {name} {}", metric.kind);
            for (suffix, labels, value) in &metric.samples {
                let _ = match labels.is_empty() {
                    true => writeln!(out, "{name}{suffix} {value}"),
                    false => writeln!(out, "{name}{suffix}{{{labels}}} {value}"),
                };
            }
        }
        out
    }
}

/// "reactors" as "reactor".
fn singular(key: &str) -> String {
    legal(key.strip_suffix('s').unwrap_or(key))
}

fn legal(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_become_metrics_and_numbered_lists_labels() {
        let figures = json!({ "count": 2, "sum": 3000, "p50": 1000, "p99": 2000, "p999": 2000, "max": 2000 });
        let status = json!({
            "fsid": "a\"b", "term": 33,
            "reactors": [
                { "reactor": 0, "locks": { "granted": 5, "recovering": false }, "client_list": [{ "rid": "x", "bytes": 1 }],
                  "latencies_us": { "commit": figures } },
                { "reactor": 1, "locks": { "granted": 7, "recovering": true } },
            ],
        });
        let text = render(&status);
        for line in [
            "# TYPE vellum_term gauge",
            "vellum_term 33",
            "# TYPE vellum_reactor_locks_granted counter",
            "vellum_reactor_locks_granted{reactor=\"0\"} 5",
            "vellum_reactor_locks_granted{reactor=\"1\"} 7",
            "vellum_reactor_locks_recovering{reactor=\"1\"} 1",
            "vellum_commit_seconds{reactor=\"0\",quantile=\"0.5\"} 0.001",
            "vellum_commit_seconds_sum{reactor=\"0\"} 0.003",
            "vellum_commit_seconds_count{reactor=\"0\"} 2",
            "vellum_info{fsid=\"a\\\"b\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        assert!(!text.contains("client_list") && !text.contains("rid"), "clients are not metrics\n{text}");
        let types = text.lines().filter(|l| l.starts_with("# TYPE vellum_reactor_locks_granted ")).count();
        assert_eq!(types, 1, "samples of one metric stand together");
    }
}
