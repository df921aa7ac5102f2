//! Refusals inside of keys hold up their own rule, are named, and are made good.

use crate::refusals::admin;
use crate::support::{Bed, PATIENCE, Sidecar, eventually};

const RULES: &str = r#"
[[rule]]
name = "user"
table = "public.item"
fields = { "user:{id}" = ["version", "page:*"] }

[[rule]]
name = "tagged"
table = "public.item"
tags = ["tag:{id}"]

[[rule]]
name = "wide"
table = "public.item"
fields = { "wide:*:{id}" = ["version"] }

[[rule]]
name = "direct"
table = "public.item"
fields = { "direct:{id}" = ["version"] }

[[rule]]
name = "plain"
table = "public.item"
keys = ["item:{id}"]
"#;

const RIGHTS: &str = "-@all +scan +unlink +get +set +incr +eval +ping +info +select +hello +auth \
                      +client +hdel +hscan +type +exists +sscan +zscan +srem +zrem";

async fn start(bed: &Bed) -> Sidecar {
    admin(bed, &format!("ACL SETUSER walsweep on nopass ~* {RIGHTS}")).await;
    bed.with(RULES, |settings| {
        settings.redis_url = settings.redis_url.replace("redis://", "redis://walsweep:any@");
        settings.level = "info".to_owned();
    })
    .await
}

async fn fill(bed: &Bed, id: u32) {
    for words in [
        format!("HSET user:{id} version x page:1 x other x"),
        format!("HSET wide:a:{id} version x other x"),
        format!("SADD tag:{id} member:{id} free:{id}"),
    ] {
        bed.run::<()>(&words).await;
    }
    let keys = ["item", "member", "free"].map(|name| format!("{name}:{id}"));
    bed.fill(&keys.each_ref().map(String::as_str)).await;
}

async fn not_ready(sidecar: &Sidecar, parts: &[&str]) {
    eventually(PATIENCE * 3, &format!("it names {parts:?}"), async || {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 503 && parts.iter().all(|part| body.contains(part))
    })
    .await;
}

async fn ready(sidecar: &Sidecar) {
    eventually(PATIENCE * 2, "it is ready", async || sidecar.readyz().await == Some(200)).await;
}

async fn fields(bed: &Bed, key: &str) -> usize {
    bed.run::<usize>(&format!("HLEN {key}")).await
}

/// A right that is missing: on hashes, on sets, and on a key that a set names.
#[tokio::test]
async fn what_may_not_be_removed_holds_up_its_own_rule() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed).await;
    for (id, (allowed, rule)) in [
        ("~item:* ~tag:* ~member:* ~free:* ~wide:* ~direct:*", "user"),
        ("~item:* ~user:* ~member:* ~free:* ~wide:* ~direct:*", "tagged"),
        ("~item:* ~user:* ~tag:* ~free:* ~wide:* ~direct:*", "tagged"),
        ("~item:* ~user:* ~tag:* ~member:* ~free:* ~direct:*", "wide"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = u32::try_from(id).unwrap() + 1;
        fill(&bed, id).await;
        admin(&bed, &format!("ACL SETUSER walsweep resetkeys ~walsweep:* {allowed}")).await;
        let before = bed.confirmed().await;
        bed.change(id).await;
        let committed = bed.position().await;
        not_ready(&sidecar, &[&format!("rule `{rule}`"), "NOPERM"]).await;
        bed.gone(&format!("item:{id}")).await;
        let of_rule = ["user", "tagged", "wide"].map(|name| name == rule);
        eventually(PATIENCE, &format!("{allowed}: the others go"), async || {
            let is_left = [
                fields(&bed, &format!("user:{id}")).await == 3,
                bed.has(&format!("member:{id}")).await,
                fields(&bed, &format!("wide:a:{id}")).await == 2,
            ];
            // A member that may go goes, whatever its set names besides.
            let is_free_left = bed.has(&format!("free:{id}")).await;
            is_left == of_rule && is_free_left != allowed.contains("~tag:")
        })
        .await;
        assert!(bed.confirmed().await < committed && bed.confirmed().await >= before);
        admin(&bed, "ACL SETUSER walsweep ~*").await;
        eventually(PATIENCE * 2, "all of it goes", async || {
            fields(&bed, &format!("user:{id}")).await == 1
                && !bed.has(&format!("member:{id}")).await
                && fields(&bed, &format!("wide:a:{id}")).await == 1
        })
        .await;
        bed.settled().await;
        ready(&sidecar).await;
    }
}

/// A key of another type is named by its rule's template, and costs that rule's key alone.
#[tokio::test]
async fn a_key_of_another_type_holds_up_itself_and_is_named() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed).await;
    for (id, rule, key, words) in [
        (1, "user", "user:1", "field `version` of `user:*`"),
        (2, "tagged", "tag:2", "members of `tag:*`"),
        (3, "direct", "direct:3", "field `version` of `direct:*`"),
    ] {
        fill(&bed, id).await;
        bed.run::<()>(&format!("DEL {key}")).await;
        bed.fill(&[key]).await;
        bed.change(id).await;
        let committed = bed.position().await;
        not_ready(&sidecar, &[&format!("rule `{rule}`"), "WRONGTYPE", words]).await;
        bed.gone(&format!("item:{id}")).await;
        // Others of the rule go.
        fill(&bed, 50 + id).await;
        bed.change(50 + id).await;
        bed.gone(&format!("member:{}", 50 + id)).await;
        eventually(PATIENCE, "fields go", async || {
            fields(&bed, &format!("user:{}", 50 + id)).await == 1
        })
        .await;
        assert!(bed.has(key).await && bed.confirmed().await < committed);
        bed.run::<()>(&format!("DEL {key}")).await;
        bed.settled().await;
        ready(&sidecar).await;
    }
    let (_, page) = sidecar.get("/metrics").await.unwrap();
    assert!(!page.contains("user:1"), "no key is in the metrics");
    assert!(sidecar.log().iter().all(|line| !line.contains("user:1`")), "nor in the log");
}

/// Many that are refused: they collapse, and are made good all the same.
#[tokio::test]
async fn many_refused_items_are_bounded_and_made_good() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("insert into item select id, 'x', 0 from generate_series(101, 30000) id").await;
    let sidecar = start(&bed).await;
    for id in [200, 29_000] {
        fill(&bed, id).await;
    }
    admin(
        &bed,
        "ACL SETUSER walsweep resetkeys ~walsweep:* ~item:* ~wide:* ~tag:* ~member:* ~free:*",
    )
    .await;
    bed.sql.run("update item set version = 1").await;
    not_ready(&sidecar, &["rule `user`", "NOPERM"]).await;
    eventually(PATIENCE * 3, "the others go", async || !bed.has("item:29000").await).await;
    assert_eq!(fields(&bed, "user:200").await, 3);
    admin(&bed, "ACL SETUSER walsweep ~*").await;
    eventually(PATIENCE * 3, "they go", async || {
        fields(&bed, "user:200").await == 1 && fields(&bed, "user:29000").await == 1
    })
    .await;
    bed.settled().await;
    let widened = sidecar.metric("walsweep_widened_total{rule=\"user\",reason=\"limit\"}").await;
    assert!(widened >= 1.0, "{widened}");
    ready(&sidecar).await;
}

/// A Redis that is away: what was under way comes again.
#[tokio::test]
async fn items_wait_for_a_redis_that_is_away() {
    let mut bed = Bed::new(&[]).await;
    let sidecar = start(&bed).await;
    fill(&bed, 1).await;
    bed.redis.stop().await.unwrap();
    bed.change(1).await;
    bed.sql.run("update item set version = version + 1 where id = 2").await;
    bed.redis.start_again().await.unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    admin(&bed, &format!("ACL SETUSER walsweep on nopass ~* {RIGHTS}")).await;
    fill(&bed, 1).await;
    eventually(PATIENCE, "all of it goes", async || {
        fields(&bed, "user:1").await == 1 && !bed.has("member:1").await && !bed.has("tag:1").await
    })
    .await;
    ready(&sidecar).await;
}
