//! Every metric stands on its page; the alerts and the dashboard name no other, and each alert
//! leads to a section of the runbook.

use std::collections::BTreeSet;

use super::source::Source;
use super::{assert_none, root_file};

/// Files that ask Prometheus for metrics.
const ASKING: [&str; 3] = [
    "packaging/prometheus/walsweep.rules.yml",
    "packaging/prometheus/tests.yml",
    "packaging/prometheus/walsweep-dashboard.json",
];

/// Names of metrics in a text.
fn metric_names(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("walsweep_").map(|(at, _)| &text[at..]);
    let names = starts.map(|rest| {
        rest.find(|one: char| !one.is_ascii_lowercase() && one != '_')
            .map_or(rest, |end| &rest[..end])
    });
    names.map(str::to_owned).collect()
}

/// Names of the metrics that the program has.
fn exposed() -> BTreeSet<String> {
    let metrics = Source::new("src/telemetry/metrics.rs", &root_file("src/telemetry/metrics.rs"));
    let mut exposed = BTreeSet::new();
    for (_, string) in &metrics.strings {
        exposed.extend(metric_names(string));
    }
    // The registry adds this one's ending by itself.
    assert!(exposed.remove("walsweep_build"));
    exposed.insert("walsweep_build_info".to_owned());
    exposed
}

/// Metrics that a file asks for and that are not there.
fn unknown_metrics(path: &str, text: &str, exposed: &BTreeSet<String>) -> Vec<String> {
    let is_known = |name: &String| {
        // A histogram of seconds is exposed as buckets and a count.
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(*end));
        let base = base.filter(|base| base.ends_with("_seconds"));
        exposed.contains(name) || base.is_some_and(|base| exposed.contains(base))
    };
    let unknown = metric_names(text).into_iter().filter(|name| !is_known(name));
    unknown.map(|name| format!("{path}: there is no metric {name}")).collect()
}

/// The anchor of a heading, as it is made for a page on the web.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Alerts that lead to no section of the runbook.
fn alerts_without_section(rules: &str, runbook: &str) -> Vec<String> {
    let headings = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    let anchors: BTreeSet<String> = headings.map(anchor).collect();
    let mut wrong = Vec::new();
    for alert in rules.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap_or_default();
        let url = alert.split("runbook_url: docs/runbook.md#").nth(1);
        let section = url.and_then(|url| url.lines().next()).unwrap_or_default();
        if !anchors.contains(section) {
            wrong.push(format!("{name}: docs/runbook.md has no section `{section}`"));
        }
    }
    wrong
}

#[test]
fn the_page_of_metrics_lists_every_metric_and_no_other() {
    let page = root_file("docs/metrics.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `walsweep_")).collect();
    assert_eq!(metric_names(&rows.join("\n")), exposed());
    let names = metric_names("| `walsweep_a_total{rule}` | `walsweep_b` |");
    assert_eq!(names, ["walsweep_a_total", "walsweep_b"].map(str::to_owned).into());
}

#[test]
fn the_alerts_and_the_dashboard_ask_for_metrics_that_exist() {
    let exposed = exposed();
    for path in ASKING {
        let text = root_file(path);
        assert!(metric_names(&text).len() > 10, "{path}");
        assert_none(&unknown_metrics(path, &text, &exposed));
    }
    let dashboard = root_file(ASKING[2]);
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].is_array());
    let unseen = exposed.iter().filter(|name| !dashboard.contains(name.as_str()));
    assert_none(&unseen.map(|name| format!("the dashboard lacks {name}")).collect::<Vec<_>>());
    let known: BTreeSet<String> =
        ["walsweep_a_total", "walsweep_b_seconds"].map(str::to_owned).into();
    let good = "rate(walsweep_a_total[5m]) / walsweep_b_seconds_count, walsweep_b_seconds_bucket";
    assert_none(&unknown_metrics("x", good, &known));
    for bad in ["walsweep_a", "walsweep_a_total_count", "walsweep_c_bucket"] {
        assert_eq!(unknown_metrics("x", bad, &known).len(), 1, "{bad}");
    }
}

#[test]
fn each_alert_leads_to_a_section_of_the_runbook() {
    let rules = root_file(ASKING[0]);
    assert!(rules.matches("- alert: ").count() > 10);
    assert_none(&alerts_without_section(&rules, &root_file("docs/runbook.md")));
    let runbook = "# Runbook\n## Redis refuses: `NOPERM`\ntext\n### Not this\n";
    let alert = "- alert: A\n  runbook_url: docs/runbook.md#";
    assert_none(&alerts_without_section(&format!("{alert}redis-refuses-noperm\n"), runbook));
    assert_eq!(alerts_without_section("- alert: A\n", runbook).len(), 1);
    for section in ["\n", "not-this\n"] {
        assert_eq!(alerts_without_section(&format!("{alert}{section}"), runbook).len(), 1);
    }
}
