//! An error's message has its cause, or its `source` is the cause, and never both: whoever prints the chain, as the command
//! line does, would say it twice. Most of ours have it in the message, which is all that a log line shows.

mod sources;

/// Errors of `text` that show a field which is also their source, by the line of their message.
fn repeated(text: &str) -> Vec<usize> {
    let (mut message, mut since, mut out) = (String::new(), 0, Vec::new());
    for (number, line) in text.lines().enumerate() {
        let code = line.trim();
        if code.starts_with("#[error(") {
            (message, since) = (String::new(), number + 1);
        }
        message.push_str(code);
        let is_source = code.contains("#[from]") || code.contains("#[source]") || code.contains("source: ");
        let variant = since > 0 && number + 1 < since + 12;
        if is_source && variant && (message.contains("{0") || message.contains("{source")) {
            out.push(since);
            since = 0;
        }
    }
    out
}

#[test]
fn no_error_says_its_cause_twice() {
    let mut found = Vec::new();
    let mut errors = 0;
    for (path, text) in sources::all(&["engine", "net", "nvme", "fsapi", "tools", "bench"]) {
        errors += text.matches("#[error(").count();
        if !path.ends_with("xtask/tests/errors.rs") {
            found.extend(repeated(&text).iter().map(|line| format!("{}:{line}", path.display())));
        }
    }
    assert!(errors > 100, "{errors} errors: they are not found any more");
    assert!(found.is_empty(), "message and source are the same in {found:#?}");
}

#[test]
fn what_repeats_is_found() {
    let bad = ["#[error(\"x: {0}\")]\nIo(#[from] Error),", "#[error(\n\"x: {source}\"\n)]\nIo { source: Error },"];
    assert!(bad.iter().all(|text| repeated(text) == [1]));
    let good = ["#[error(transparent)]\nIo(#[from] Error),", "#[error(\"x\")]\nIo { source: Error },"];
    assert!(good.iter().all(|text| repeated(text).is_empty()));
}
