//! The least rights: with `LEAST` set, each sidecar logs in as the role that `walsweep setup --as`
//! makes, and as the user of Redis whose line `walsweep check` prints.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, cmd};
use serde_json::Value;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::Settings;

/// Tests that keep the logins of their settings, each with the reason. They run all the same.
pub(crate) const KEEP_THEIR_LOGIN: &[(&str, &str)] = &[
    ("by_hand::what_no_rule_covers_goes_by_force_alone", "it removes what no rule covers"),
    ("cached::a_table_that_is_no_longer_the_same_is_noticed", "a new table comes without grants"),
    (
        "cached::what_the_stream_does_not_keep_true_is_not_kept_and_check_says_why",
        "only a superuser may make temporary functions there",
    ),
    ("cluster::a_node_may_join_and_leave", "a node that joins has no users yet"),
    (
        "cluster::a_node_without_a_slot_that_comes_back_with_old_keys_is_swept",
        "a node that joins has no users yet",
    ),
    ("continuity::redis::two_connections_to_two_servers_are_refused", BUSY_PROXY),
    ("credentials::a_changed_password_needs_no_restart", "the password is the superuser's"),
    ("credentials::a_password_of_the_environment_lets_in", "the password is the superuser's"),
    (
        "fitness::a_server_that_comes_later_is_looked_at_when_it_comes",
        "another server takes the place of the one that has the user",
    ),
    ("hints::a_login_to_postgres_that_fails_is_told_with_what_lets_it_in", "it asks about logins"),
    ("hints::a_redis_that_does_not_let_walsweep_in_is_told_with_what_does", "it asks about logins"),
    (
        "hosts::a_standby_is_named_as_one_whatever_the_rules_need",
        "no role can be made at a standby",
    ),
    (
        "hosts::the_stream_comes_from_the_server_that_sql_reaches_whatever_it_is_called",
        "the other server has no such role",
    ),
    (
        "hosts::where_no_host_is_a_primary_each_is_named_with_the_reason",
        "no role can be made at a standby",
    ),
    ("index::names_on_their_way_are_waited_for", BUSY_PROXY),
    ("observe::names_on_their_way_at_the_end_of_the_window_are_waited_for", BUSY_PROXY),
    ("probe::a_probe_that_cannot_begin_says_what_is_wrong", "no role can be made at a standby"),
    (
        "reload::a_file_that_is_being_written_is_waited_for",
        "it writes keys into its file that the user has no right to",
    ),
    (
        "reload::a_reload_while_redis_is_away_is_taken_over_and_removes_when_it_is_back",
        "Redis is frozen when it needs more rights",
    ),
    (
        "secrets::no_page_and_no_report_tells_a_value_a_key_or_a_password_whatever_fails",
        "it changes the superuser's password",
    ),
    (
        "sentinel::access::sentinels_that_are_away_at_the_start_are_waited_for",
        "nobody names the server that needs the user",
    ),
    (
        "setup::closed::what_is_done_to_several_targets_is_done_to_all_though_nobody_reads_what_\
         it_prints",
        "the user may not load the lease functions",
    ),
    (
        "setup::given_up::a_slot_that_cannot_be_decoded_and_may_be_anothers_is_left_until_a_\
         person_drops_it",
        "it asks about the name of the login",
    ),
    (
        "setup::given_up::a_slot_that_keeps_too_much_and_may_be_anothers_is_read_on",
        "Redis is frozen when it needs the user",
    ),
    (
        "setup::given_up::a_slot_that_walsweep_has_not_moved_is_not_its_own_for_having_been_read",
        "making the role writes WAL",
    ),
    (
        "setup::grants::a_script_that_is_printed_in_part_says_so_and_why_and_ends_with_1",
        "it asks about logins",
    ),
    (
        "setup::login::a_refused_login_is_told_with_where_its_password_comes_from",
        "it asks about logins",
    ),
    (
        "setup::login::a_superuser_in_the_configuration_is_told_where_lookups_run_with_it",
        "it asks about a superuser",
    ),
    (
        "setup::login::setup_and_teardown_change_nothing_where_the_servers_cannot_be_compared",
        "it asks about logins",
    ),
    (
        "setup::memory::nothing_is_changed_by_who_may_not_do_all_that_is_needed",
        "who sets up may make no role",
    ),
    (
        "setup::old_rows::old_rows_of_a_partitioned_table_are_told_once_setup_has_run",
        "it starts before anything is granted",
    ),
    (
        "setup::teardown::a_role_that_is_not_for_walsweep_alone_is_not_sent_to_be_dropped",
        "it asks about a superuser",
    ),
    ("shutdown::why_it_ends_is_a_line_of_a_log_of_json", "it asks about logins"),
    (
        "state::overloads::no_function_operator_or_type_of_others_is_ever_called",
        "it asks about a superuser",
    ),
    (
        "state::settings::a_lookup_alone_sees_the_roles_own_view",
        "it changes the superuser's search_path",
    ),
    ("versions::two_servers_are_refused", "the other server has no such role"),
];

/// Ports of what takes no login: its client has the least rights in Postgres alone.
static WITHOUT_USERS: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A reason.
const BUSY_PROXY: &str = "its proxy runs on the thread of the test, on which the kit waits";

/// The role in Postgres.
const ROLE: &str = "least";

/// A user whom no server has: `check` prints the whole line for it.
const NOBODY: &str = "not-there";

/// How long a server may take to let somebody in. One that is away is asked before the next
/// command.
const PATIENCE: Duration = Duration::from_secs(5);

const HAS_ROLE: &str = "select exists (select from pg_roles where rolname = 'least')
                            or pg_is_in_recovery()";

/// The logins of one sidecar.
#[derive(Debug)]
pub(super) struct Least {
    /// The user in Redis, of this sidecar alone: another one's rights are not its own.
    user: String,
    has_role: AtomicBool,
    has_user: AtomicBool,
}

impl Least {
    /// The logins of the sidecar with this port, if the mode is on and the test takes part.
    pub(super) fn new(http_port: u16) -> Option<Least> {
        std::env::var_os("LEAST").filter(|value| !value.is_empty())?;
        let thread = thread::current();
        let test = thread.name().unwrap_or_default();
        assert_ne!(test, "main", "tests need threads of their own, whose names are theirs");
        if let Some((_, why)) = KEEP_THEIR_LOGIN.iter().find(|(name, _)| *name == test) {
            eprintln!("{test} keeps its login: {why}");
            return None;
        }
        Some(Least::always(http_port))
    }

    /// The logins of the sidecar with this port, whatever the mode is.
    pub(super) fn always(http_port: u16) -> Least {
        let user = format!("least-{http_port}");
        let [has_role, has_user] = [false, false].map(AtomicBool::new);
        Least { user, has_role, has_user }
    }

    /// The settings with these logins, in place of the superuser and of no user.
    pub(super) fn logins(&self, settings: &Settings) -> Settings {
        with_logins(settings, &self.user)
    }

    /// Makes the user anew, with what `check` prints for the settings; a server that is away gets
    /// it before the next command.
    pub(super) fn settings_changed(&self, settings: &Settings, folder: &Path) {
        self.has_user.store(false, Ordering::Relaxed);
        self.has_role.store(false, Ordering::Relaxed);
        self.let_in(settings, folder);
    }

    /// Prepares `walsweep ARGS` for settings without the logins: what sets up does it as the
    /// superuser; everything else needs the role.
    pub(super) fn prepare(&self, settings: &Settings, folder: &Path, command: &mut Command) {
        self.let_in(settings, folder);
        let name = command.get_args().find_map(|arg| {
            let arg = arg.to_str()?;
            ["setup", "teardown"].contains(&arg).then(|| arg.to_owned())
        });
        if self.logins(settings).postgres_url == settings.postgres_url {
            return;
        }
        if name.is_some() {
            command.env("WALSWEEP_SETUP_AS", &settings.postgres_url);
        } else if !self.has_role.load(Ordering::Relaxed) {
            let is_made = make_role(settings, folder) == Some(());
            self.has_role.store(is_made, Ordering::Relaxed);
        }
    }

    fn let_in(&self, settings: &Settings, folder: &Path) {
        if self.has_user.load(Ordering::Relaxed) {
            return;
        }
        let lines = lines_of_check(settings, folder);
        let mut is_made = true;
        for (name, url, mode) in targets(settings) {
            if with_user(&url, NOBODY) == url {
                continue;
            }
            let rules = lines.iter().filter(|(of, _)| *of == name).map(|(_, rules)| rules);
            let rules: Vec<Vec<String>> = rules.cloned().collect();
            let made = apart(async {
                let mut is_made = !rules.is_empty();
                for mut server in servers(&url, &mode).await {
                    if let Err(error) = set_user(&mut server, &self.user, &rules).await {
                        eprintln!("{url} takes no user: {error}");
                        is_made = false;
                    }
                }
                is_made
            });
            is_made &= made;
        }
        self.has_user.store(is_made, Ordering::Relaxed);
    }
}

fn with_logins(settings: &Settings, user: &str) -> Settings {
    let role = |text: &str| {
        text.replace("//postgres@", &format!("//{ROLE}@"))
            .replace("//postgres:", &format!("//{ROLE}:"))
    };
    let mut new = settings.clone();
    new.postgres_url = role(&settings.postgres_url);
    if new.postgres_url != settings.postgres_url {
        new.postgres = role(&settings.postgres);
    }
    if !settings.redis.contains("password_") {
        new.redis_url = with_user(&settings.redis_url, user);
    }
    for target in &mut new.targets {
        let url = url_of(target);
        *target = target.replace(&url, &with_user(&url, user));
    }
    new
}

/// Says that nobody can log in at this port of 127.0.0.1.
pub(super) fn has_no_users(port: u16) {
    WITHOUT_USERS.lock().unwrap().insert(port);
}

/// The URL with a user, if it has none yet and may have one.
fn with_user(url: &str, user: &str) -> String {
    match url.split_once("redis://") {
        Some(("", rest)) if !rest.contains('@') && !is_without_users(rest) => {
            format!("redis://{user}:x@{rest}")
        }
        _ => url.to_owned(),
    }
}

fn is_without_users(address: &str) -> bool {
    let port = address.split_once(':').and_then(|(_, rest)| port(rest));
    port.is_some_and(|port| WITHOUT_USERS.lock().unwrap().contains(&port))
}

/// The URL in the lines of a target.
fn url_of(lines: &str) -> String {
    quoted(lines, "url = \"")
}

fn quoted(lines: &str, head: &str) -> String {
    let rest = lines.split_once(head).map_or("", |(_, rest)| rest);
    rest.split('"').next().unwrap_or_default().to_owned()
}

/// Name (none, where there is one target alone), URL and lines of each target.
fn targets(settings: &Settings) -> Vec<(String, String, String)> {
    match settings.targets.as_slice() {
        [] if settings.redis.contains("password_") => Vec::new(),
        [] => vec![(String::new(), settings.redis_url.clone(), settings.redis.clone())],
        [one] => vec![(String::new(), url_of(one), one.clone())],
        targets => {
            let each = targets.iter();
            each.map(|one| (quoted(one, "name = \""), url_of(one), one.clone())).collect()
        }
    }
}

/// The rights that `check` prints behind `acl setuser USER on '>PASSWORD'`, each with the name of
/// its target. It asks Redis alone.
fn lines_of_check(settings: &Settings, folder: &Path) -> Vec<(String, Vec<String>)> {
    let mut asked = with_logins(settings, NOBODY);
    "postgres://nobody@127.0.0.1:1/none".clone_into(&mut asked.postgres_url);
    let output = walsweep(&asked, folder, &["check", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let findings = report["redis"].as_array().into_iter().flatten();
    let lines = findings.filter_map(|finding| {
        let (message, hint) = (finding["message"].as_str()?, finding["hint"].as_str()?);
        let name = message.strip_prefix("redis `").and_then(|rest| rest.split_once("`: "));
        let name = name.map_or("", |(name, _)| name);
        let (_, line) = hint.split_once(&format!("`acl setuser {NOBODY} on '>PASSWORD' "))?;
        let (line, more) = line.split_once("` in `redis-cli` makes it")?;
        let mut rules = words(line);
        // After `~*` Redis would take no other pattern, as of another target.
        if more.contains("give `~` for them, too") {
            rules.push("~?*".to_owned());
        } else if std::env::var("LEAST").is_ok_and(|value| value == "selector") {
            rules = with_selector(rules);
        }
        Some((name.to_owned(), rules))
    });
    lines.collect()
}

/// The words as `redis-cli` takes them.
fn words(line: &str) -> Vec<String> {
    let plain = |word: &str| match word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => word.trim_matches('\'').to_owned(),
    };
    line.split(' ').map(plain).collect()
}

/// The rights in the form of docs/SECURITY.md, which needs Redis 7.0: values are read and written
/// below `walsweep:` alone. Not for `tags`.
fn with_selector(rules: Vec<String>) -> Vec<String> {
    let own = ["+get", "+set", "+incr", "+eval"];
    let is_own = |rule: &String| own.contains(&rule.as_str()) || rule.ends_with("walsweep:*");
    let (inner, mut outer): (Vec<String>, Vec<String>) = rules.into_iter().partition(is_own);
    let fields = outer.iter().filter(|rule| ["+hdel", "+hscan"].contains(&rule.as_str()));
    let both: String = fields.map(|rule| format!(" {rule}")).collect();
    outer.push(format!("({} +unlink{both})", inner.join(" ")));
    outer
}

/// The program with another configuration file beside that of the settings, which listens nowhere
/// that a running one does.
fn walsweep(settings: &Settings, folder: &Path, args: &[&str]) -> Command {
    let file = folder.join("least.toml");
    fs::write(&file, settings.toml(0)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walsweep"));
    command.args(args).arg("--config").arg(file);
    command.envs(settings.env.iter().map(|(name, value)| (name, value)));
    command
}

/// Lets `setup --as` make the role, unless it is there. It does no more, for it cannot compare the
/// superuser's server with that of the settings.
fn make_role(settings: &Settings, folder: &Path) -> Option<()> {
    let url = &settings.postgres_url;
    let ask = async || {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
        drop(tokio::spawn(connection));
        Some(client.query_one(HAS_ROLE, &[]).await.ok()?.get::<_, bool>(0))
    };
    // A host may never say a word.
    let has_role = async || timeout(PATIENCE, ask()).await.ok().flatten();
    if apart(has_role())? {
        return Some(());
    }
    let mut settings = with_logins(settings, NOBODY);
    let (login, rest) = settings.postgres_url.split_once('@')?;
    let (_, database) = rest.split_once('/')?;
    settings.postgres_url = format!("{login}@127.0.0.1:1/{database}");
    walsweep(&settings, folder, &["setup", "--as", url]).output().unwrap();
    apart(has_role())?.then_some(())
}

/// Connections to every server of a target that can be reached: also to those that may take its
/// place, by their replication, or as nodes of its cluster.
async fn servers(url: &str, mode: &str) -> Vec<MultiplexedConnection> {
    let mut ports: Vec<u16> = match mode.contains("\"sentinel\"") {
        true => primaries(url, mode).await,
        false => url.rsplit(':').next().and_then(port).into_iter().collect(),
    };
    let mut known: BTreeSet<u16> = ports.iter().copied().collect();
    let mut servers = Vec::new();
    while let Some(port) = ports.pop() {
        let Some(mut server) = connect(&format!("redis://127.0.0.1:{port}")).await else {
            continue;
        };
        for one in others(&mut server).await {
            if known.insert(one) {
                ports.push(one);
            }
        }
        servers.push(server);
    }
    servers
}

/// Whom Sentinels name as the primary: more than one, where they do not agree.
async fn primaries(url: &str, mode: &str) -> Vec<u16> {
    let service = url.trim_start_matches("redis://").split('/').next();
    let mut ports = Vec::new();
    for sentinel in mode.split('"').filter(|part| part.starts_with("redis://")) {
        let Some(mut sentinel) = connect(sentinel).await else { continue };
        let mut ask = cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        let named = ask.query_async::<(String, u16)>(&mut sentinel).await;
        ports.extend(named.map(|(_host, port)| port));
    }
    ports
}

/// The servers that this one names.
async fn others(server: &mut MultiplexedConnection) -> Vec<u16> {
    let info = cmd("INFO").arg("replication").query_async::<String>(server).await;
    let nodes = cmd("CLUSTER").arg("NODES").query_async::<String>(server).await;
    let info = info.unwrap_or_default();
    let of_info = info.lines().filter_map(|line| match line.split_once("port=") {
        Some((_, rest)) => port(rest),
        None => port(line.strip_prefix("master_port:")?),
    });
    let nodes = nodes.unwrap_or_default();
    let of_nodes = nodes.lines().filter_map(|line| {
        let (address, _) = line.split(' ').nth(1)?.split_once('@')?;
        port(address.rsplit(':').next()?)
    });
    of_info.chain(of_nodes).collect()
}

/// The number that the text begins with.
fn port(text: &str) -> Option<u16> {
    text.split(|one: char| !one.is_ascii_digit()).next()?.parse().ok()
}

async fn connect(url: &str) -> Option<MultiplexedConnection> {
    let client = redis::Client::open(url).ok()?;
    // The client's own half second is short on a busy machine.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    client.get_multiplexed_async_connection_with_config(&config).await.ok()
}

/// Gives the user these rights, which the server keeps over a restart.
async fn set_user(
    server: &mut MultiplexedConnection,
    user: &str,
    rules: &[Vec<String>],
) -> redis::RedisResult<()> {
    for rules in rules {
        let mut set = cmd("ACL");
        set.arg("SETUSER").arg(user).arg("on").arg(">x").arg(rules);
        set.exec_async(server).await?;
    }
    cmd("ACL").arg("SAVE").exec_async(server).await
}

/// Waits for what needs a runtime in a thread of its own: a test waits for the kit here.
fn apart<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(work)
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}
