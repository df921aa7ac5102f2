//! A service that Sentinels watch: keys go from whichever server they name, and nothing is lost
//! over a failover, the old primary of a split brain included (I2, I7).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use redis::cmd;
use tokio::time::Instant;
use walsweep::config::{self, Mode, Sentinel};
use walsweep::password::Source;
use walsweep::sweep::{Error, Kind, Node, Replaced, Standalone};
use walsweep_stage::throwaway::{Redis, RedisOptions, Sentinels, SentinelsOptions};

use crate::support::{Bed, Fault, PATIENCE, Proxy, Settings, Sidecar, always, eventually, text};

/// A primary, which is the bed's Redis, one replica, and three Sentinels.
struct Service {
    bed: Bed,
    replica: Redis,
    sentinels: Sentinels,
}

impl Service {
    async fn start() -> Service {
        let bed = Bed::new(&[]).await;
        // Asked of a primary, this one waits for no second replica.
        let mut delay = cmd("CONFIG");
        delay.arg("SET").arg("repl-diskless-sync-delay").arg(0);
        delay.exec_async(&mut bed.cache.clone()).await.unwrap();
        let port = bed.redis.port().to_string();
        let options = RedisOptions::with_args(&["--replicaof", "127.0.0.1", &port]);
        let replica = Redis::start(options).await.unwrap();
        let sentinels = Sentinels::watch(SentinelsOptions::default(), bed.redis.port()).await;
        Service { bed, replica, sentinels: sentinels.unwrap() }
    }

    /// The addresses of the Sentinels.
    fn ports(&mut self) -> Vec<u16> {
        self.sentinels.sentinels().iter().map(Redis::port).collect()
    }

    fn settings(&mut self) -> Settings {
        let ports = self.ports();
        by_sentinels(self.bed.settings(), &ports)
    }

    /// Waits until the replica has what was written to the primary.
    async fn in_sync(&self) {
        let mut wait = cmd("WAIT");
        wait.arg(1).arg(10_000);
        // It is about the writes of its own connection.
        self.bed.fill(&["other"]).await;
        let reached: u32 = wait.query_async(&mut self.bed.cache.clone()).await.unwrap();
        assert_eq!(reached, 1, "the replica follows");
    }

    async fn cache_rows(&self) {
        self.bed.cache_rows().await;
        self.in_sync().await;
    }

    /// Waits until the Sentinels agree on the replica; the bed's Redis is that from then on. Gives
    /// the old primary.
    async fn failed_over(&mut self) -> Redis {
        let promoted = self.sentinels.primary_other_than(self.bed.redis.port()).await.unwrap();
        assert_eq!(promoted, self.replica.port());
        std::mem::swap(&mut self.bed.redis, &mut self.replica);
        self.bed.cache = self.bed.redis.connect().await.unwrap();
        let old = RedisOptions::default();
        std::mem::replace(&mut self.replica, Redis::start(old).await.unwrap())
    }

    /// Sentinels and replica can no longer log in at the primary; whoever is the user `app` can.
    async fn cut_off(&mut self) {
        let mut cache = self.bed.cache.clone();
        for words in [
            &["AUTH", "app", "hunter2"][..],
            &["ACL", "SETUSER", "default", "off"],
            &["CLIENT", "KILL", "USER", "default"],
        ] {
            run(&mut cache, words).await;
        }
    }

    /// Lets `app` in, at both servers.
    async fn with_app(&mut self) {
        let replica = self.replica.connect().await.unwrap();
        for mut server in [self.bed.cache.clone(), replica] {
            run(&mut server, &["ACL", "SETUSER", "app", "on", ">hunter2", "~*", "&*", "+@all"])
                .await;
        }
    }
}

async fn run(connection: &mut redis::aio::MultiplexedConnection, words: &[&str]) {
    let mut command = cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(*word);
    });
    command.exec_async(connection).await.unwrap();
}

/// Settings for the service of these Sentinels.
fn by_sentinels(settings: Settings, ports: &[u16]) -> Settings {
    Settings {
        redis_url: "redis://cache/0".to_owned(),
        redis: format!("mode = \"sentinel\"\nsentinels = {:?}", urls(ports, "")),
        ..settings
    }
}

/// Their URLs, with this login.
fn urls(ports: &[u16], login: &str) -> Vec<String> {
    ports.iter().map(|port| format!("redis://{login}127.0.0.1:{port}")).collect()
}

async fn change(bed: &Bed, ids: std::ops::Range<i32>) {
    let (first, last) = (ids.start, ids.end - 1);
    let rows = format!("update item set version = version + 1 where id between {first} and {last}");
    bed.sql.run(&rows).await;
}

/// Everything is removed and confirmed, and nothing stale is left; rows that nobody changed stay.
async fn at_rest(bed: &Bed, sidecar: &Sidecar) {
    eventually(PATIENCE, "ready", || async { sidecar.readyz().await == Some(200) }).await;
    bed.settled().await;
    bed.fresh().await;
    assert!(bed.has("item:100").await, "nothing but what changed is removed");
}

/// The line that says which primary was connected to.
fn named(port: u16) -> String {
    format!("primary=\"127.0.0.1:{port}\"")
}

/// A primary that is killed, with commits before, while there is none, and after.
#[tokio::test]
async fn keys_go_from_the_primary_that_sentinels_name_and_from_the_one_after_it() {
    let mut service = Service::start().await;
    let mut settings = service.settings();
    settings.refill = "100ms".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    let old = service.bed.redis.port();
    sidecar.wait_log(&named(old)).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.gone("item:9").await;
    let check = text(&sidecar.command(&["check"]));
    assert!(
        check.contains(&format!("`127.0.0.1:{old}` is the primary of `cache`, as 3 of 3")),
        "{check}"
    );
    assert!(!check.contains("redis_sentinels"), "{check}");
    service.bed.settled().await;
    service.cache_rows().await;
    service.bed.redis.kill9().await.unwrap();
    change(&service.bed, 10..20).await;
    drop(service.failed_over().await);
    change(&service.bed, 20..30).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
    assert_eq!(sidecar.metric("walsweep_redis_up{target=\"redis\",node=\"cache\"}").await, 1.0);
}

/// The old primary goes on as a replica, and says so.
#[tokio::test]
async fn a_failover_by_command_is_followed() {
    let mut service = Service::start().await;
    let settings = service.settings();
    let settings = Settings { observe: true, refill: "100ms".to_owned(), ..settings };
    let sidecar = Sidecar::set_up(settings).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    let mut sentinel = service.sentinels.sentinels()[0].connect().await.unwrap();
    eventually(PATIENCE, "the Sentinel takes the command", || {
        let mut sentinel = sentinel.clone();
        async move {
            let mut failover = cmd("SENTINEL");
            failover.arg("FAILOVER").arg("cache").exec_async(&mut sentinel).await.is_ok()
        }
    })
    .await;
    run(&mut sentinel, &["PING"]).await;
    change(&service.bed, 10..20).await;
    let _old = service.failed_over().await;
    change(&service.bed, 20..30).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
}

/// The old primary is cut off from Sentinels and replica, and not from walsweep, for which it
/// goes on as ever: that there was a failover only the Sentinels know.
#[tokio::test]
async fn the_old_primary_of_a_split_brain_is_left() {
    let mut service = Service::start().await;
    service.with_app().await;
    let mut settings = service.settings();
    settings.redis_url = "redis://app:hunter2@cache/0".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    service.cut_off().await;
    // Acknowledged by the old primary, and nowhere else.
    change(&service.bed, 10..20).await;
    service.bed.gone("item:19").await;
    let mut old_cache = service.bed.cache.clone();
    let old = service.failed_over().await;
    change(&service.bed, 20..30).await;
    sidecar.wait_log("not `127.0.0.1").await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(sidecar.metric("walsweep_resyncs_total{reason=\"watermark_lost\"}").await < 1.0);
    assert!(sidecar.metric("walsweep_repeated_keys_total").await > 0.0, "by the ring");
    // It comes back, and is a replica from then on.
    run(&mut old_cache, &["ACL", "SETUSER", "default", "on"]).await;
    change(&service.bed, 30..40).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(!sidecar.log().iter().any(|line| line.contains("hunter2")), "a password");
    drop(old);
}

/// It hangs, and goes on once another is the primary: what it acknowledges then counts for nothing.
#[tokio::test]
async fn a_primary_that_hangs_and_comes_back_is_left() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    service.bed.redis.pause().unwrap();
    let before = service.bed.confirmed().await;
    change(&service.bed, 10..20).await;
    let old = service.failed_over().await;
    sidecar.wait_log("is lost; connecting again").await;
    old.resume().unwrap();
    change(&service.bed, 20..30).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(service.bed.confirmed().await > before);
}

/// The settings of the program, for a node of it alone.
fn target(ports: &[u16]) -> config::Redis {
    let sentinel = |url: String| Sentinel { url, password: Source::None };
    let list = urls(ports, "").into_iter().map(sentinel).collect();
    config::Redis {
        mode: Mode::Sentinel(config::Sentinels { service: "cache".to_owned(), list }),
        password: Source::Given("hunter2".into()),
        ..config::Redis::at("redis://app@cache/0")
    }
}

/// I2: a watermark that the old primary took is none to confirm by, however soon that is asked.
#[tokio::test]
async fn what_only_an_old_primary_has_is_not_confirmed() {
    let mut service = Service::start().await;
    service.with_app().await;
    let ports = service.ports();
    let node = Standalone::new(&target(&ports), "walsweep");
    node.connect().await.unwrap();
    assert_eq!(node.name(), "cache");
    node.watermark().await.unwrap();
    assert_eq!(node.replace_watermark(None, b"one").await.unwrap(), Replaced::Yes);
    node.shared(b"one").await.unwrap();
    node.keep_alive().await.unwrap();
    service.cut_off().await;
    let old = service.failed_over().await;
    // It goes on as ever.
    node.unlink(&[vec![b"item:1"]]).await.unwrap();
    let replaced = node.replace_watermark(Some(b"one"), b"two").await.unwrap();
    assert_eq!(replaced, Replaced::Yes);
    for outcome in [node.shared(b"two").await, node.keep_alive().await] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Lost(_, Kind::Swapped)), "{error:?}");
        let both = [service.bed.redis.port(), old.port()].map(|port| format!("127.0.0.1:{port}"));
        assert!(both.iter().all(|address| error.to_string().contains(address)), "{error}");
    }
    node.connect().await.unwrap();
    node.shared(b"one").await.unwrap();
    // One of three may be cut off with an old primary.
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    node.keep_alive().await.unwrap_err();
    let error = node.shared(b"one").await.unwrap_err();
    assert!(matches!(error, Error::Refused(_, Kind::Sentinel)), "{error:?}");
    node.unlink(&[vec![b"item:1"]]).await.unwrap();
    node.connect().await.expect("it has heard of the failover");
}

/// The Sentinel that is left has missed the failover, and its primary says that it is one.
#[tokio::test]
async fn few_sentinels_who_know_less_than_before_are_not_believed() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    service.bed.settled().await;
    service.cache_rows().await;
    service.sentinels.sentinels()[0].kill9().await.unwrap();
    service.bed.redis.kill9().await.unwrap();
    let mut old = service.failed_over().await;
    let new = named(service.bed.redis.port());
    sidecar.wait_log(&new).await;
    change(&service.bed, 10..20).await;
    at_rest(&service.bed, &sidecar).await;
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    old.start_again().await.unwrap();
    service.sentinels.sentinels()[0].start_again().await.unwrap();
    let before = sidecar.log().len();
    // As long as the connection stands, nobody is asked to name another.
    change(&service.bed, 20..30).await;
    service.bed.gone("item:29").await;
    sidecar.wait_log("nobody knows whether").await;
    let is_lost = || async { sidecar.log()[before..].iter().any(|line| line.contains("is lost")) };
    always(Duration::from_secs(2), "it stands", || async { !is_lost().await }).await;
    run(&mut service.bed.cache.clone(), &["CLIENT", "KILL", "TYPE", "normal"]).await;
    sidecar.wait_log("have not heard of the last failover").await;
    let wrong = named(old.port());
    assert!(!sidecar.log()[before..].iter().any(|line| line.contains(&wrong)), "it went back");
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.start_again().await.unwrap();
    }
    let again = || async { sidecar.log()[before..].iter().any(|line| line.contains(&new)) };
    eventually(PATIENCE, "connected again", again).await;
}

/// Nobody knows whether there was a failover: keys go, and nothing is confirmed.
#[tokio::test]
async fn too_few_sentinels_hold_the_confirmation_and_no_key() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    service.bed.settled().await;
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    let position = service.bed.position().await;
    change(&service.bed, 1..10).await;
    service.bed.gone("item:9").await;
    sidecar.wait_log("nobody knows whether").await;
    sidecar.wait_log("take out those that are gone for good").await;
    always(Duration::from_secs(1), "nothing is confirmed", || async {
        service.bed.confirmed().await <= position
    })
    .await;
    let check = text(&sidecar.command(&["check"]));
    assert!(check.contains("warning[redis_sentinels]: 1 of 3 Sentinels name"), "{check}");
    service.sentinels.sentinels()[1].start_again().await.unwrap();
    at_rest(&service.bed, &sidecar).await;
}

/// A Sentinel that says forever that the primary is at this port, as it did at the beginning.
fn stale_sentinel(primary: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || drop(answer(stream, primary)));
        }
    });
    port
}

fn answer(mut stream: TcpStream, primary: u16) -> std::io::Result<()> {
    let array = |words: &[&str]| {
        let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        format!("*{}\r\n{}", words.len(), words.collect::<String>())
    };
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let count: usize = line[1..].trim_end().parse().unwrap();
        let mut words = Vec::new();
        for _ in 0..count {
            line.clear();
            reader.read_line(&mut line)?;
            let mut word = vec![0; line[1..].trim_end().parse::<usize>().unwrap() + 2];
            reader.read_exact(&mut word)?;
            words.push(String::from_utf8(word).unwrap().trim_end().to_uppercase());
        }
        let port = primary.to_string();
        let reply = match words.get(1).map(String::as_str) {
            Some("GET-MASTER-ADDR-BY-NAME") => array(&["127.0.0.1", &port]),
            Some("MASTER") => array(&["ip", "127.0.0.1", "port", &port, "config-epoch", "0"]),
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// Two that missed the failover are listed first, and their primary says that it is one.
#[tokio::test]
async fn sentinels_with_an_old_view_do_not_outvote_a_later_failover() {
    let mut service = Service::start().await;
    let old = service.bed.redis.port();
    service.bed.redis.kill9().await.unwrap();
    let mut was = service.failed_over().await;
    for sentinel in &mut service.sentinels.sentinels()[1..] {
        sentinel.kill9().await.unwrap();
    }
    was.start_again().await.unwrap();
    let mut ports = vec![stale_sentinel(old), stale_sentinel(old)];
    ports.push(service.ports()[0]);
    let sidecar = Sidecar::set_up(by_sentinels(service.bed.settings(), &ports)).await;
    sidecar.wait_log(&named(service.bed.redis.port())).await;
    service.bed.cache_rows().await;
    change(&service.bed, 1..10).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(!sidecar.log().iter().any(|line| line.contains(&named(old))), "the old one");
}

/// It does not answer, and so it keeps nothing waiting.
#[tokio::test]
async fn a_sentinel_that_hangs_holds_nothing_up() {
    let mut service = Service::start().await;
    service.with_app().await;
    let ports = service.ports();
    let node = Standalone::new(&target(&ports), "walsweep");
    node.connect().await.unwrap();
    service.sentinels.sentinels()[0].pause().unwrap();
    let began = Instant::now();
    for _ in 0..2 {
        node.keep_alive().await.unwrap();
        node.shared(b"one").await.unwrap();
    }
    node.connect().await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(2_500), "{:?}", began.elapsed());
    service.sentinels.sentinels()[1].pause().unwrap();
    let began = Instant::now();
    assert_eq!(node.shared(b"one").await.unwrap_err().kind(), Kind::Sentinel);
    node.connect().await.expect("one answer is enough");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    for sentinel in &service.sentinels.sentinels()[..2] {
        sentinel.resume().unwrap();
    }
    node.shared(b"one").await.unwrap();
}

/// As behind a firewall that forgets connections: it is not asked over one that hung before.
#[tokio::test]
async fn a_connection_to_a_sentinel_that_falls_silent_is_made_anew() {
    let mut service = Service::start().await;
    service.with_app().await;
    let ports = service.ports();
    let proxy = Proxy::to_port(ports[1]);
    let node = Standalone::new(&target(&[ports[0], proxy.port()]), "walsweep");
    node.connect().await.unwrap();
    // Enough for one question.
    proxy.set(Fault::SilentAfter(2_500));
    let mut is_silent = false;
    loop {
        match node.shared(b"one").await {
            Ok(()) if is_silent => return,
            Ok(()) => {}
            Err(error) => {
                assert!(!is_silent, "{error}");
                assert!(error.to_string().contains("does not answer"), "{error}");
                is_silent = true;
            }
        }
    }
}

/// As long as a failover lasts, a Sentinel may name one that is not the primary yet, or any more.
#[tokio::test]
async fn a_replica_that_a_sentinel_names_is_not_used() {
    let service = Service::start().await;
    let named = service.replica.port();
    let ports = [stale_sentinel(named)];
    let mut sidecar = Sidecar::new(by_sentinels(service.bed.settings(), &ports));
    sidecar.setup();
    let told = text(&sidecar.command(&["check"]));
    let place = format!("`127.0.0.1:{named}` (primary of `cache`, as its Sentinels say)");
    assert!(told.contains(&format!("connect to redis at {place}: the server is a repl")), "{told}");
    sidecar.start();
    sidecar.wait_log("the server is a replica").await;
    let mut promote = cmd("REPLICAOF");
    promote.arg("NO").arg("ONE");
    promote.exec_async(&mut service.replica.connect().await.unwrap()).await.unwrap();
    sidecar.wait_ready().await;
}

/// `check` and `run` say what each Sentinel says, and what to do.
#[tokio::test]
async fn a_service_that_no_sentinel_knows_is_refused() {
    let mut service = Service::start().await;
    let mut settings = service.settings();
    settings.redis_url = "redis://hunter/0".to_owned();
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let expected = format!(
        "ask the Sentinels for the primary of `hunter`: `127.0.0.1:{}` knows no such service; ",
        service.ports()[0]
    );
    let check = sidecar.command(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    let told = text(&check);
    assert!(told.contains(&expected) && told.contains("(`sentinel masters`)"), "{told}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    assert!(sidecar.log().iter().any(|line| line.contains(&expected)), "{:?}", sidecar.log());
    let server = service.bed.redis.port();
    sidecar.change(|settings| *settings = by_sentinels(settings.clone(), &[server]));
    let told = text(&sidecar.command(&["check"]));
    assert!(told.contains(&format!("`127.0.0.1:{server}`: is a Redis, no Sentinel")), "{told}");
    let settings = service.settings();
    sidecar.change(|old| *old = settings);
    sidecar.start();
    sidecar.wait_ready().await;
}

/// Sentinels that are away may come: `run` waits for them.
#[tokio::test]
async fn sentinels_that_are_away_at_the_start_are_waited_for() {
    let mut service = Service::start().await;
    for sentinel in service.sentinels.sentinels() {
        sentinel.kill9().await.unwrap();
    }
    let mut sidecar = Sidecar::new(service.settings());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_log("ask the Sentinels for the primary of `cache`").await;
    sidecar.wait_log("see that the Sentinels in `redis.sentinels` run").await;
    for sentinel in service.sentinels.sentinels() {
        sentinel.start_again().await.unwrap();
    }
    sidecar.wait_ready().await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    at_rest(&service.bed, &sidecar).await;
}

/// The login of the Sentinels is theirs: the servers have none.
#[tokio::test]
async fn a_password_of_the_sentinels_is_theirs_and_never_told() {
    let mut service = Service::start().await;
    for sentinel in service.sentinels.sentinels() {
        let mut connection = sentinel.connect().await.unwrap();
        for words in [
            &["ACL", "SETUSER", "default", "resetpass", ">hunter2"][..],
            &["ACL", "SETUSER", "few", "on", ">hunter3", "-@all", "+auth", "+client|setname"],
            &["ACL", "SETUSER", "few", "+sentinel|get-master-addr-by-name"],
        ] {
            run(&mut connection, words).await;
        }
    }
    let (settings, ports) = (service.settings(), service.ports());
    let mut sidecar = Sidecar::new(settings);
    sidecar.setup();
    let told = text(&sidecar.command(&["check"]));
    assert!(told.contains("redis answered NOAUTH"), "{told}");
    for (login, answer) in
        [(":hunter1@", "authentication failed"), ("few:hunter3@", "3 of 3 Sentinels")]
    {
        sidecar.change(|settings| {
            let urls = urls(&ports, login);
            settings.redis = format!("mode = \"sentinel\"\nsentinels = {urls:?}");
        });
        let told = text(&sidecar.command(&["check"]));
        assert!(told.contains(answer) && !told.contains("hunter"), "{told}");
    }
    sidecar.change(|settings| {
        settings.redis =
            format!("mode = \"sentinel\"\nsentinels = {:?}", urls(&ports, ":hunter2@"));
    });
    sidecar.start();
    sidecar.wait_ready().await;
    service.cache_rows().await;
    change(&service.bed, 1..10).await;
    at_rest(&service.bed, &sidecar).await;
    assert!(!sidecar.log().iter().any(|line| line.contains("hunter")), "a password");
}

/// Where it is printed how the keys are removed by hand, the line asks a Sentinel where.
#[tokio::test]
async fn the_printed_redis_cli_reaches_the_primary() {
    let mut service = Service::start().await;
    let sidecar = Sidecar::set_up(service.settings()).await;
    service.cache_rows().await;
    service.bed.marked().await;
    let printed = text(&sidecar.command(&["teardown", "--print"]));
    let printed: String = printed.lines().map(|line| line.trim_start_matches("--")).collect();
    let start = printed.find("`redis-cli").unwrap() + 1;
    let line = &printed[start..start + printed[start..].find('`').unwrap()];
    drop(sidecar);
    let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", text(&output));
    assert_eq!(service.bed.watermark().await, None, "{line}");
    assert!(service.bed.has("item:1").await);
}
