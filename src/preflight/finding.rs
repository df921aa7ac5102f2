//! Findings of a check, and how they are shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::code::Code;
use super::facts::Fact;
use super::step::{Step, printed};
use crate::config::Location;
use crate::telemetry::Cure;
use crate::words::{below, counted, is_wall};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The promise would not hold; `run` suspends the rule, or refuses to start.
    Error,
    /// It holds, at a price.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
    }
}

/// The part of walsweep that stands still because of a finding that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Scope {
    /// All of walsweep.
    Everything,
    /// These rules, by name. The others go on.
    Rules(Vec<String>),
}

impl Scope {
    fn is_everything(&self) -> bool {
        *self == Scope::Everything
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A name for programs, such as `replica_identity`; it stays the same over versions.
    pub code: Code,
    /// Whether it concerns some rules, and which.
    #[serde(rename = "rules", skip_serializing_if = "Scope::is_everything")]
    pub scope: Scope,
    /// The place in the configuration that it is about.
    #[serde(serialize_with = "serialize_location", skip_serializing_if = "Option::is_none")]
    pub at: Option<Location>,
    /// The configuration file that the place is in, once [`Finding::in_file`] has said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<str>>,
    /// The finding in words: lowercase, values in backticks.
    pub message: String,
    /// Advice on what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The statements that cure it, as a person runs them one after another, without the last
    /// semicolon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// The steps that cure it, for a program: a transaction each.
    #[serde(skip)]
    pub steps: Vec<Step>,
    /// Whether `setup` cures it although it is no error: walsweep runs without, at a price.
    #[serde(skip)]
    pub is_done_by_setup: bool,
}

impl Finding {
    /// One that says of its cure what its code says, until it is told another.
    pub(super) fn new(severity: Severity, code: Code, message: String) -> Finding {
        let (scope, at, file, sql) = (Scope::Everything, None, None, None);
        let hint = (severity != Severity::Info).then(|| code.cure().to_owned());
        let (steps, is_done_by_setup) = (Vec::new(), false);
        Finding { severity, code, scope, at, file, message, hint, sql, steps, is_done_by_setup }
    }

    pub(crate) fn error(code: Code, message: impl Into<String>) -> Finding {
        Finding::new(Severity::Error, code, message.into())
    }

    pub(crate) fn warning(code: Code, message: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, code, message.into())
    }

    pub(crate) fn info(code: Code, message: impl Into<String>) -> Finding {
        Finding::new(Severity::Info, code, message.into())
    }

    /// It concerns these rules alone.
    pub(crate) fn of_rules<S: Into<String>>(self, rules: impl IntoIterator<Item = S>) -> Finding {
        Finding { scope: Scope::Rules(rules.into_iter().map(Into::into).collect()), ..self }
    }

    pub(super) fn at(self, at: &Location) -> Finding {
        Finding { at: Some(at.clone()), ..self }
    }

    /// Its place is in this file; nothing changes for one without a place.
    #[must_use]
    pub fn in_file(self, file: &Arc<str>) -> Finding {
        let file = self.at.is_some().then(|| Arc::clone(file));
        Finding { file, ..self }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Finding {
        Finding { hint: Some(hint.into()), ..self }
    }

    /// `setup` cures it, too, if it may.
    pub(super) fn done_by_setup(self) -> Finding {
        Finding { is_done_by_setup: true, ..self }
    }

    /// Sets the steps that cure it, in this order, and their SQL; no SQL for no steps.
    pub(super) fn cure(self, steps: Vec<Step>) -> Finding {
        let sql = (!steps.is_empty()).then(|| printed(&steps));
        // The SQL says more than the code.
        let hint = self.hint.filter(|hint| sql.is_none() || hint != self.code.cure());
        Finding { sql, steps, hint, ..self }
    }

    /// Whether the promise would not hold: `run` suspends the rules that it concerns, and refuses
    /// to start if it concerns everything.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether `setup` cures it if anything does.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.is_error() || self.is_done_by_setup
    }

    /// Whether `setup` is the command for its SQL. Of a slot that may be another program's a
    /// person has to say whose it is: `setup` leaves it.
    fn is_by_setup(&self) -> bool {
        self.is_due() && !(self.is_error() && self.code == Code::SlotUnclaimed)
    }

    /// Whether `run` refuses to start because of it, whatever the rules.
    #[must_use]
    pub fn stops_everything(&self) -> bool {
        self.is_error() && self.scope.is_everything()
    }

    /// Whether `run` would wait until it is over: a server that is down, or busy with itself.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.is_error() && self.code.is_waited_for()
    }

    /// The rules that it concerns, if it is an error.
    pub fn concerns(&self) -> impl Iterator<Item = &str> {
        let rules = match &self.scope {
            Scope::Rules(rules) if self.is_error() => rules.as_slice(),
            Scope::Rules(_) | Scope::Everything => &[],
        };
        rules.iter().map(String::as_str)
    }

    /// The rules that are suspended because of it. A partition that was added without the identity
    /// of its table, as jobs do every month, makes keys wide, or fails the application's own UPDATE
    /// and DELETE of its rows, and leaves no key: its rule goes on. So does one whose keys
    /// Redis does not let go.
    pub fn suspends(&self) -> impl Iterator<Item = &str> {
        self.concerns().filter(|_| !self.code.goes_on())
    }
}

impl Finding {
    /// All but its SQL, with this hint.
    fn head(&self, hint: Option<&str>) -> String {
        let Finding { at, file, message, .. } = self;
        let at = at.as_ref();
        let file = file.as_ref().map(|file| format!("{file}:")).unwrap_or_default();
        let place = at.map(|at| format!("{}:{}: {}: ", at.line, at.column, at.key));
        let hint = hint.map(|hint| format!("\n    hint: {hint}")).unwrap_or_default();
        format!("{file}{}{message}{hint}", place.unwrap_or_default())
    }

    /// Its SQL as it is shown.
    fn shown_sql(&self) -> String {
        below("    ", self.sql.as_deref())
    }

    /// In the place of SQL that is a wall: the command that runs it, or shows it.
    fn instead_of_wall(&self) -> Option<&'static str> {
        self.sql.as_ref().filter(|sql| is_wall(sql)).map(|_| match self.is_by_setup() {
            true => {
                "\n    cure: `walsweep setup --as URL`, as a superuser or the owner; \
                 `walsweep setup --print` shows the SQL"
            }
            false => "\n    cure: SQL of many lines, which `walsweep check --json` shows",
        })
    }

    /// The cure for a person, while walsweep runs.
    #[must_use]
    pub fn advice(&self) -> Cure {
        let by_setup = self.sql.as_ref().filter(|_| self.is_by_setup()).map(|sql| {
            let more = if is_wall(sql) { "; `walsweep setup --print` shows the SQL" } else { "" };
            format!("`walsweep setup --as URL` mends it, as a superuser or the owner{more}")
        });
        // What is to be done comes before what follows from it.
        let parts: Vec<String> = by_setup.into_iter().chain(self.hint.clone()).collect();
        let hint = (!parts.is_empty()).then(|| parts.join("; "));
        Cure { hint, sql: self.sql.clone() }
    }

    /// How another finding refers to it.
    fn place(&self) -> String {
        let at = self.at.as_ref();
        at.map_or_else(
            || format!("`{}`", self.code.as_str()),
            |at| format!("{}:{}", at.line, at.column),
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.head(self.hint.as_deref()))?;
        match self.instead_of_wall() {
            Some(cure) => formatter.write_str(cure),
            None => formatter.write_str(&self.shown_sql()),
        }
    }
}

/// Findings as texts, one after another: SQL and long hints that several have are printed once.
pub(crate) fn told<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<String> {
    told_with(findings, |_| None)
}

/// Findings as texts for a screen: without SQL that is a wall.
fn told_in_short<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<String> {
    told_with(findings, Finding::instead_of_wall)
}

/// Findings as texts, with what stands in the place of SQL, if something does.
fn told_with<'a>(
    findings: impl Iterator<Item = &'a Finding>,
    instead: fn(&Finding) -> Option<&'static str>,
) -> Vec<String> {
    /// A shorter hint is as easily read again as a reference to another place.
    const LONG: usize = 80;
    let mut known: BTreeMap<&str, &Finding> = BTreeMap::new();
    let mut first = |text: Option<&'a str>, finding: &'a Finding| {
        text.and_then(|text| known.insert(text, known.get(text).copied().unwrap_or(finding)))
    };
    let mut text = |finding: &'a Finding| {
        let hint = finding.hint.as_deref();
        let hint_before = first(hint.filter(|hint| hint.len() > LONG), finding);
        let hint_before = hint_before.map(|before| format!("as above, at {}", before.place()));
        let head = finding.head(hint_before.as_deref().or(hint));
        if let Some(instead) = instead(finding) {
            return format!("{head}{instead}");
        }
        match first(finding.sql.as_deref(), finding) {
            Some(before) => format!("{head}\n    cure: the SQL above, at {}", before.place()),
            None => format!("{head}{}", finding.shown_sql()),
        }
    };
    findings.map(&mut text).collect()
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn serialize_location<S: Serializer>(
    at: &Option<Location>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Place<'a> {
        line: usize,
        column: usize,
        key: &'a str,
    }
    let place = |at| {
        let &Location { line, column, ref key } = at;
        Place { line, column, key }
    };
    at.as_ref().map(place).serialize(serializer)
}

/// Everything that was found at both servers, and here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the database.
    pub postgres: Vec<Finding>,
    /// In Redis.
    pub redis: Vec<Finding>,
    /// On this machine: what `run` would need of it.
    pub own: Vec<Finding>,
    /// Everything that was looked at, and is as it should be.
    pub facts: Vec<Fact>,
}

impl Report {
    /// All findings, those of Postgres first.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.postgres.iter().chain(&self.redis).chain(&self.own)
    }

    /// Whether anything is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.findings().any(Finding::is_error)
    }

    /// Gives the report with the places of all findings in this file.
    #[must_use]
    pub fn in_file(self, file: &Arc<str>) -> Report {
        let placed = |findings: Vec<Finding>| {
            findings.into_iter().map(|finding| finding.in_file(file)).collect()
        };
        let (postgres, redis, own) = (placed(self.postgres), placed(self.redis), placed(self.own));
        Report { postgres, redis, own, ..self }
    }

    /// One JSON object: `ok`, the `verdict`, the findings about walsweep's `own` start, about
    /// `postgres` and about `redis`, and the `facts`.
    #[must_use]
    pub fn to_json(&self, verdict: &impl Serialize) -> String {
        #[derive(Serialize)]
        struct Shown<'a, V> {
            ok: bool,
            verdict: &'a V,
            #[serde(flatten)]
            report: &'a Report,
        }
        let shown = Shown { ok: !self.has_errors(), verdict, report: self };
        serde_json::to_string_pretty(&shown).expect("texts and numbers are JSON")
    }
}

impl fmt::Display for Report {
    /// The findings, the worst first, what is as it should be, and a line that counts.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut findings: Vec<&Finding> = self.findings().collect();
        findings.sort_by_key(|finding| finding.severity);
        for (finding, text) in findings.iter().zip(told_in_short(findings.iter().copied())) {
            let Finding { severity, code, .. } = finding;
            writeln!(formatter, "{}[{}]: {text}", severity.as_str(), code.as_str())?;
        }
        for Fact { about, text } in &self.facts {
            writeln!(formatter, "{about:<9} {text}")?;
        }
        let count = |severity| self.findings().filter(|one| one.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        write!(formatter, "{}, {}", counted(errors, "error"), counted(warnings, "warning"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, Fact, Finding, Report};
    use crate::config::Location;

    fn report() -> Report {
        let at = Location { line: 7, column: 9, key: "rule.0.table".to_owned() };
        let error = Finding::error(Code::TableMissing, "no table `a.b`").at(&at);
        let error = error.hint("a hint");
        let sql = Some("begin;\ncommit".to_owned());
        let error = Finding { sql, ..error };
        let facts = [("postgres", "version 15.18"), ("pass", "over 7 keys")];
        let facts = facts.map(|(about, text)| Fact::new(about, text.to_owned())).to_vec();
        let report = Report {
            postgres: vec![Finding::info(Code::StartSweeps, "y"), error],
            ..Report::default()
        };
        Report { facts, ..report }.in_file(&"walsweep.toml".into())
    }

    #[test]
    fn the_text_shows_the_worst_first_with_place_hint_and_sql() {
        let text = "error[table_missing]: walsweep.toml:7:9: rule.0.table: no table `a.b`\n    \
                    hint: a hint\n    sql: begin;\n         commit;\ninfo[start_sweeps]: y\n\
                    postgres  version 15.18\npass      over 7 keys\n\
                    1 error, 0 warnings";
        assert_eq!(report().to_string(), text);
    }

    #[test]
    fn sql_that_several_findings_have_is_printed_once_and_referred_to() {
        let Report { postgres, .. } = report();
        let second = Finding { at: None, file: None, code: Code::TableKind, ..postgres[1].clone() };
        let other = Finding { sql: Some("other".to_owned()), ..second.clone() };
        let texts = super::told([&postgres[1], &second, &other, &second].into_iter());
        assert!(texts[0].ends_with("    sql: begin;\n         commit;"), "{}", texts[0]);
        assert_eq!(texts[1], "no table `a.b`\n    hint: a hint\n    cure: the SQL above, at 7:9");
        assert!(texts[2].ends_with("    sql: other;"), "{}", texts[2]);
        assert_eq!(texts[3], texts[1]);
    }

    /// The whole of it is in `--json`, and in the script of `setup`.
    #[test]
    fn a_wall_of_sql_is_the_command_that_runs_it() {
        let wall = "do $setup$ begin null; end $setup$";
        let mut report = report();
        for finding in &mut report.postgres {
            finding.sql = Some(wall.to_owned());
        }
        let text = report.to_string();
        assert!(!text.contains("do $"), "{text}");
        assert!(text.contains("a hint\n    cure: `walsweep setup --as URL`, as a"), "{text}");
        assert!(text.contains("y\n    cure: SQL of many lines, which `walsweep check --json`"));
        for finding in &mut report.postgres {
            finding.code = Code::SlotUnclaimed;
        }
        let (text, advice) = (report.to_string(), report.postgres[1].advice().hint);
        assert!(!text.contains("setup --as"), "whose it is says a person: {text}");
        assert!(advice.is_none_or(|hint| !hint.contains("setup --as")));
        assert!(report.to_json(&"start").contains("do $setup$"));
        assert!(super::told(report.findings())[0].contains("    sql: do $setup$"));
    }

    #[test]
    fn a_long_hint_that_several_findings_have_is_printed_once_and_referred_to() {
        let hint = "`acl setuser app +ping +info`, ".repeat(4);
        let of =
            |message: &str, hint: &str| Finding::error(Code::RedisPermission, message).hint(hint);
        let findings = [of("x", &hint), of("y", &hint), of("z", "short"), of("w", "short")];
        let texts = super::told(findings.iter());
        assert_eq!(texts[0], format!("x\n    hint: {hint}"));
        let others = [
            "y\n    hint: as above, at `redis_permission`",
            "z\n    hint: short",
            "w\n    hint: short",
        ];
        assert_eq!(texts[1..], others);
    }

    #[test]
    fn the_json_has_every_field_that_is_there() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json(&"start")).unwrap();
        let finding = serde_json::json!({
            "severity": "error", "code": "table_missing", "message": "no table `a.b`",
            "at": { "line": 7, "column": 9, "key": "rule.0.table" }, "file": "walsweep.toml",
            "hint": "a hint", "sql": "begin;\ncommit",
        });
        assert_eq!(json["postgres"][1], finding);
        assert_eq!(json["postgres"][0].get("hint"), None);
        assert_eq!(json["postgres"][0].get("file"), None, "it has no place");
        let fact = serde_json::json!({ "about": "pass", "text": "over 7 keys" });
        assert_eq!(json["facts"][1], fact);
        assert_eq!((&json["ok"], &json["redis"]), (&false.into(), &serde_json::json!([])));
        assert_eq!(json["verdict"], "start");
    }
}
