//! Tools that the tests of the checks share: configurations, databases, and what is found in them.

use std::process::Command;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};
use walsweep::config::{
    Config, Http, Located, Location, Log, LogFormat, Operations, Refill, Rule, Script, Sweep,
    TableName,
};
use walsweep::keys::Rules;
use walsweep::postgres::Endpoint;
use walsweep::preflight::{self, Finding, SENTENCE};
use walsweep::run::shutdown::Shutdown;
use walsweep::setup::Hands;
use walsweep_stage::throwaway::Postgres;

/// Codes that are found on every throwaway server, for a superuser, and for a publication that a
/// test made by hand and gave a comment that tells no more than whose it is. The rows do not tell
/// them.
pub(crate) const USUAL: [&str; 6] = [
    "slot_missing",
    "slot_keep_unlimited",
    "publication_foreign",
    "publication_memory",
    "superuser",
    "heir_published",
];

pub(crate) const NO_OPERATIONS: Operations =
    Operations { insert: false, update: false, delete: false, truncate: false };

/// A table that needs nothing but a publication for [`whole`].
pub(crate) const TABLE: &str = "create table t (id int primary key, a text, b text);
                     alter table t replica identity full;";

pub(crate) fn located(values: &[&str], rule: usize, option: &str) -> Vec<Located<String>> {
    let at = |(index, value): (usize, &&str)| {
        let key = format!("rule.{rule}.{option}.{index}");
        Located { value: (*value).to_owned(), at: Location { line: rule + 1, column: 1, key } }
    };
    values.iter().enumerate().map(at).collect()
}

/// A rule of all operations.
pub(crate) fn rule(table: &str, keys: &[&str]) -> Rule {
    let at = |key: &str| Location { line: 1, column: 1, key: key.to_owned() };
    Rule {
        name: "r".to_owned(),
        at: at("rule.0"),
        table: TableName { schema: "public".to_owned(), name: table.to_owned() },
        table_at: at("rule.0.table"),
        operations: Operations::ALL,
        changed: Vec::new(),
        immutable: Vec::new(),
        keys: located(keys, 0, "keys"),
        tags: Vec::new(),
        fields: Vec::new(),
        source: walsweep::config::Source::Table,
        when: None,
        targets: walsweep::config::Targets::ALL,
    }
}

/// The rule with a condition.
pub(crate) fn when(condition: &str, rule: Rule) -> Rule {
    let at = Location { line: 1, column: 1, key: "rule.0.when".to_owned() };
    Rule { when: Some(Script::new(condition.to_owned(), at, condition)), ..rule }
}

/// A rule that needs the old value of `a`.
pub(crate) fn whole(table: &str) -> Rule {
    rule(table, &["k:{a}"])
}

pub(crate) fn immutable(table: &str) -> Rule {
    Rule { immutable: located(&["a"], 0, "immutable"), ..whole(table) }
}

pub(crate) fn config(port: u16, database: &str, rules: Vec<Rule>) -> Config {
    // The checks of Redis alone have no Postgres, and say so with port 0.
    let port = port.max(1);
    let url = format!("postgres://postgres@127.0.0.1:{port}/{database}?sslmode=disable");
    let endpoint = Endpoint::parse(&url).unwrap();
    Config {
        postgres: walsweep::config::Postgres {
            replication_endpoint: endpoint.clone(),
            endpoint,
            publication: "walsweep".to_owned(),
            slot: format!("slot_{database}"),
            replicas: Vec::new(),
            max_retained_wal: None,
            failover: false,
            slot_on: walsweep::config::SlotOn::Primary,
            probe: false,
        },
        // Nobody listens there, whatever else runs on this machine.
        redis: vec![walsweep::config::Redis::at("redis://127.0.0.1:1/0")],
        sweep: Sweep { max_stall: Duration::from_millis(1), max_load: 0.25, index: None },
        refill: Refill { window: Duration::from_secs(1), observe: false },
        http: Http { listen: None, keys: false },
        log: Log { format: LogFormat::Text, level: "info".to_owned(), keys: false },
        audit: walsweep::config::Audit { file: None, max_bytes: 1 << 20, keep: 0 },
        rules: rules.into_iter().zip(0..).map(numbered).collect(),
        lookups: Vec::new(),
    }
}

/// The hands of `setup` and `teardown`, which nobody stops.
pub(crate) fn hands<'a>(config: &'a Config, client: &'a Client) -> Hands<'a> {
    let (_trigger, stop) = Shutdown::by_trigger();
    Hands { client, endpoint: &config.postgres.endpoint, stop }
}

/// Hands a publication that a test made over to walsweep, if there is one.
pub(crate) async fn adopt(client: &Client) {
    let there = "select count(*) from pg_publication where pubname = 'walsweep'";
    if client.query_one(there, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        run(client, &format!("comment on publication walsweep is '{SENTENCE}'")).await;
    }
}

/// Runs a script with psql, which must succeed.
pub(crate) fn psql(server: &Postgres, database: &str, script: &str) {
    let file = server.socket_dir().parent().unwrap().join("script.sql");
    std::fs::write(&file, script).unwrap();
    let mut psql = client_program(server, "psql");
    let psql = psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", database]);
    let output = psql.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{script}");
}

pub(crate) async fn connect(server: &Postgres, database: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(&server.url_of(database), NoTls).await.unwrap();
    drop(tokio::spawn(connection));
    client
}

pub(crate) async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{error:?}\n{sql}");
    }
}

/// The server's version, such as 15. The throwaway server may be any that walsweep knows.
pub(crate) async fn major_version(client: &Client) -> i32 {
    let row = client.query_one("select current_setting('server_version_num')::int", &[]).await;
    row.unwrap().get::<_, i32>(0) / 10_000
}

/// A new database, with the tables of `ddl`.
pub(crate) async fn database(server: &Postgres, name: &str, ddl: &str) -> Client {
    run(&server.connect().await.unwrap(), &format!("create database {name}")).await;
    let client = connect(server, name).await;
    run(&client, ddl).await;
    client
}

pub(crate) async fn check(config: &Config, client: &Client) -> Vec<Finding> {
    let rules = Rules::with_lookups(&config.rules, &config.lookups).unwrap();
    preflight::postgres(config, &rules, client).await.unwrap().findings
}

pub(crate) fn codes(findings: &[Finding]) -> Vec<&'static str> {
    let mut codes: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
    codes.retain(|code| !USUAL.contains(code));
    codes.sort_unstable();
    codes.dedup();
    codes
}

pub(crate) fn find<'a>(findings: &'a [Finding], code: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.code.as_str() == code);
    found.unwrap_or_else(|| panic!("no {code} in {findings:#?}"))
}

pub(crate) fn errors(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.is_error()).collect()
}

fn numbered((rule, number): (Rule, usize)) -> Rule {
    Rule { name: format!("r{number}"), ..rule }
}

/// A client program that connects to the server: its own, or else one in `$PATH`, where a server's
/// programs may be linked without their clients.
pub(crate) fn client_program(server: &Postgres, name: &str) -> Command {
    if server.bin(name).exists() {
        return server.command(name);
    }
    let mut command = Command::new(name);
    command.env("PGHOST", "127.0.0.1").env("PGPORT", server.port().to_string());
    command.env("PGUSER", "postgres");
    command
}
