//! Rights for fields, tags and messages.

use redis::aio::MultiplexedConnection;
use redis::{Client, cmd};
use walsweep::config::{Config, Fields, Located, Location, Rule};
use walsweep::preflight::{self, Finding};
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::kit::{config, rule};

/// Enough for keys alone.
const KEYS: &str = "~* resetchannels +ping +info +scan +get +set +incr +eval +unlink";

/// Words in single quotes are taken as `redis-cli` takes them.
async fn run(connection: &mut MultiplexedConnection, command: &str) {
    let mut words = command.split_whitespace().map(|word| word.trim_matches('\''));
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command.exec_async(connection).await.unwrap();
}

/// A configuration with these options, as user `app`.
fn with(server: &Redis, has_fields: bool, has_tags: bool, channel: Option<&str>) -> Config {
    let located = |text: &str| Located { value: text.to_owned(), at: Location::default() };
    let mut rule: Rule = rule("t", &["k:{id}"]);
    if has_fields {
        rule.fields = vec![Fields { key: located("h:{id}"), fields: vec![located("f")] }];
    }
    if has_tags {
        rule.tags = vec![located("tag:{id}")];
    }
    let mut config = config(0, "app", vec![rule]);
    config.redis[0].url = server.url().replace("redis://", "redis://app:x@");
    config.redis[0].publish = channel.map(str::to_owned);
    config
}

async fn found(config: &Config) -> Vec<Finding> {
    let client = Client::open(config.redis[0].url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    preflight::redis(&config.targets().next().unwrap(), &mut connection).await
}

#[tokio::test]
async fn each_option_needs_its_rights_and_the_cure_gives_them() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    let (tags, all) = ("+type +exists +sscan +zscan +srem +zrem", "+hdel +hscan");
    for (fields, is_tagged, channel, missing) in [
        (false, false, None, String::new()),
        (true, false, None, all.to_owned()),
        (false, true, None, tags.to_owned()),
        (false, false, Some("gone"), "+publish".to_owned()),
        (true, true, Some("a*b"), format!("{all} {tags} +publish")),
    ] {
        run(&mut admin, &format!("acl setuser app reset on >x {KEYS}")).await;
        let config = with(&server, fields, is_tagged, channel);
        let findings = found(&config).await;
        let rights: Vec<String> =
            missing.split_whitespace().map(|right| format!("`{right}`")).collect();
        if rights.is_empty() {
            assert_eq!(findings, []);
            continue;
        }
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert!(finding.message.ends_with(&format!("lacks {}", rights.join(", "))), "{finding:?}");
        let hint = finding.hint.as_deref().unwrap();
        run(&mut admin, hint.split('`').nth(1).unwrap()).await;
        let mut after = found(&config).await;
        // Whether it may use the channel shows once it may publish at all.
        if hint.contains("check` again") {
            assert!(after[0].message.contains("lacks `&"), "{after:?}");
            let hint = after[0].hint.clone().unwrap();
            run(&mut admin, hint.split('`').nth(1).unwrap()).await;
            after = found(&config).await;
        }
        assert_eq!(after, [], "{hint}");
    }
    // The channel alone is missing.
    run(&mut admin, &format!("acl setuser app reset on >x {KEYS} +publish")).await;
    let findings = found(&with(&server, false, false, Some("a*b"))).await;
    assert!(findings[0].message.ends_with(r"lacks `&a\*b`"), "{findings:?}");
    // Redis takes no channel from a user who may use all.
    run(&mut admin, &format!("acl setuser app reset on >x {KEYS} &*")).await;
    let findings = found(&with(&server, false, false, Some("a*b"))).await;
    let hint = findings[0].hint.as_deref().unwrap();
    run(&mut admin, hint.split('`').nth(1).unwrap()).await;
    assert_eq!(found(&with(&server, false, false, Some("a*b"))).await, []);
    let left: Vec<String> = cmd("KEYS").arg("*").query_async(&mut admin).await.unwrap();
    assert_eq!(left, Vec::<String>::new(), "a check leaves nothing");
}

/// The keys of hashes and sets are asked about as other keys are.
#[tokio::test]
async fn a_hash_or_set_that_may_not_be_written_is_named_by_its_template() {
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let mut admin = server.connect().await.unwrap();
    run(&mut admin, "acl setuser app reset on >x ~k:* ~walsweep:* +@all").await;
    let findings = found(&with(&server, true, true, None)).await;
    let told: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|one| one.contains("`h:{id}`")), "{told:?}");
    assert!(told.iter().any(|one| one.contains("`tag:{id}`")), "{told:?}");
    let hint = findings[0].hint.as_deref().unwrap();
    assert!(hint.contains("keys the sets of `tags` name: give `~` for them, too"), "{hint}");
}
