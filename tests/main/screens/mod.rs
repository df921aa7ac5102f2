//! The pages as a person sees them, in a headless Chromium: `/` in six states and the runbook, on a
//! desktop and on a phone. `make screenshots` installs the browser, and keeps the pictures.

mod browser;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use redis::AsyncCommands;
use walsweep_stage::throwaway::{Redis, RedisOptions};

use self::browser::{Browser, Screen};
use crate::support::{Bed, PATIENCE, Settings, Sidecar};

const DESKTOP: Screen = Screen { width: 1280, is_dark: false };
const PHONE: Screen = Screen { width: 360, is_dark: true };

/// The rules of a shop; a table and a key are named like markup.
const RULES: &str = r#"
[[rule]]
name = "products"
table = "public.product"
keys = ["product:{id}", "category:{category}:*"]

[[rule]]
name = "prices"
table = "public.product"
changed = ["price"]
keys = ["price:{id}", "offers:*"]

[[rule]]
name = "orders"
table = "public.orders"
keys = ["order:{id}", "customer:{customer}:orders"]

[[rule]]
name = "reviews"
table = "public.<img src=x onerror=alert(1)>"
keys = ["reviews:{product}:<b>{id}</b>"]
"#;

const TABLES: &str = "
    create table product (id int primary key, category text, price numeric);
    create table orders (id int primary key, customer int, state text);
    create table \"<img src=x onerror=alert(1)>\" (id int primary key, product int);
    alter table product replica identity full;
    alter table orders replica identity full;
    alter table \"<img src=x onerror=alert(1)>\" replica identity full;
    insert into product select id, (array['chairs', 'tables', 'lamps'])[1 + id % 3], 10
        from generate_series(1, 500) id;
    insert into orders select id, id % 40, 'open' from generate_series(1, 500) id;
    insert into \"<img src=x onerror=alert(1)>\" select id, id % 90
        from generate_series(1, 500) id;";

/// A shop, and the browser that looks at it.
struct Shop {
    bed: Bed,
    sidecar: Sidecar,
    browser: Browser,
}

impl Shop {
    async fn open(change: impl AsyncFnOnce(&Bed, &mut Settings)) -> Shop {
        let bed = Bed::new(&[]).await;
        bed.sql.run(TABLES).await;
        let rules = RULES.to_owned();
        let mut settings = Settings {
            rules,
            refill: "1s".to_owned(),
            http: "keys = true".to_owned(),
            ..bed.settings()
        };
        change(&bed, &mut settings).await;
        let sidecar = Sidecar::set_up(settings).await;
        bed.settled().await;
        Shop { bed, sidecar, browser: Browser::start().await }
    }

    /// Orders come in, prices change.
    async fn trade(&self, rounds: u32) {
        for round in 0..rounds {
            let id = round % 400 + 1;
            let (order, review) = (id * 7 % 400 + 1, id * 3 % 400 + 1);
            self.bed.fill(&[&format!("order:{order}"), &format!("product:{id}")]).await;
            self.bed.fill(&[&format!("category:lamps:{round}")]).await;
            let statements = format!(
                "begin; update orders set state = 'paid' where id in ({order}, {order} + 1);
                 update product set price = price + 1 where id = {id}; commit;
                 update \"<img src=x onerror=alert(1)>\" set product = product where id = {review}"
            );
            self.bed.sql.run(&statements).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Keys that no rule gives, which a pass has to look at.
    async fn crowd(&self, thousands: u32) {
        for number in 0..thousands {
            let script = "for i = 1, 1000 do redis.call('set', 'o:' .. ARGV[1] .. ':' .. i, 1) end";
            let mut connection = self.bed.cache.clone();
            let asked = redis::cmd("EVAL").arg(script).arg(0).arg(number).to_owned();
            asked.exec_async(&mut connection).await.unwrap();
        }
    }

    /// Waits until the verdict says this, looks at all of it, and keeps a picture of each screen.
    async fn look(&mut self, name: &str, says: &str, parts: &[&str]) {
        let url = format!("http://127.0.0.1:{}/", self.sidecar.http_port());
        for (screen, kind) in [(DESKTOP, "desktop"), (PHONE, "phone")] {
            self.browser.open(&url, screen).await;
            let (began, mut text) = (tokio::time::Instant::now(), String::new());
            while !(text.contains(says) && parts.iter().all(|part| text.contains(part))) {
                assert!(began.elapsed() < PATIENCE * 3, "{name}, {kind}: {says} {parts:?}: {text}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                let found = self.browser.value("document.body.innerText").await;
                found.as_str().unwrap_or_default().clone_into(&mut text);
            }
            // Rates are known, and lines drawn, after some events.
            tokio::time::sleep(Duration::from_secs(4)).await;
            let markup = "document.querySelectorAll('main img, main b b, main script').length";
            assert_eq!(self.browser.value(markup).await, 0, "a name became markup");
            keep(&mut self.browser, &format!("{name}-{kind}")).await;
        }
    }
}

/// Keeps a picture of a page that has room on its screen.
async fn keep(browser: &mut Browser, name: &str) {
    let wide = "document.documentElement.scrollWidth - window.innerWidth";
    assert_eq!(browser.value(wide).await, 0, "{name}: it overflows");
    if let Some(folder) = std::env::var_os("SCREENSHOTS").map(PathBuf::from) {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.png")), browser.picture().await).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn healthy() {
    let mut shop = Shop::open(async |_, _| {}).await;
    shop.trade(60).await;
    let name = "<img src=x onerror=alert(1)>";
    let parts = ["Last transactions", name, "products", "A pass takes", "up to", "live"];
    let other = crate::support::Sql::connect(&shop.bed.postgres).await;
    let trading = tokio::spawn(async move {
        loop {
            other.run("update orders set state = 'sent' where id = 3").await;
            other.run("update product set price = price + 1 where id = 4").await;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    });
    shop.look("healthy", "All is well", &parts).await;
    trading.abort();
}

#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn redis_down() {
    let mut shop = Shop::open(async |_, _| {}).await;
    shop.trade(20).await;
    shop.bed.redis.pause().unwrap();
    shop.bed.sql.run("update orders set state = 'late' where id < 20").await;
    shop.look("redis-down", "Redis is out of reach", &["out of reach", "What to do"]).await;
    shop.bed.redis.resume().unwrap();
}

#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn behind() {
    let mut shop = Shop::open(async |_, settings| {
        settings.sweep = "max_load = 0.01".to_owned();
    })
    .await;
    shop.crowd(400).await;
    let other = crate::support::Sql::connect(&shop.bed.postgres).await;
    let trading = tokio::spawn(async move {
        loop {
            other.run("update product set price = price + 1 where id = 4").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    shop.look(
        "behind",
        "with patterns, waiting for a pass or in one",
        &["Passes in progress", "max_load"],
    )
    .await;
    trading.abort();
}

#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn resync() {
    let mut shop = Shop::open(async |_, settings| {
        settings.sweep = "max_load = 0.01".to_owned();
    })
    .await;
    shop.trade(10).await;
    shop.crowd(400).await;
    let _: () = shop.bed.cache.clone().del("walsweep:walsweep").await.unwrap();
    shop.look(
        "resync",
        "Sweeping: watermark_lost",
        &["Passes in progress", "everything that may be stale"],
    )
    .await;
}

#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn rule_suspended() {
    let mut shop = Shop::open(async |_, _| {}).await;
    shop.trade(30).await;
    shop.bed.sql.run("alter table orders rename column customer to buyer").await;
    let parts = ["suspended: it removes nothing", "What to do"];
    shop.look("rule-suspended", "Rule orders is suspended", &parts).await;
}

#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn two_targets() {
    let near = Redis::start(RedisOptions::default()).await.unwrap();
    let url = near.url();
    let mut shop = Shop::open(async |bed, settings| {
        let target = |name: &str, url: &str| format!("name = {name:?}\nurl = {url:?}");
        settings.targets = vec![target("cache", &bed.redis.url()), target("sessions", &url)];
    })
    .await;
    shop.trade(40).await;
    shop.look("two-targets", "All is well", &["Redis cache", "Redis sessions"]).await;
}

/// Its style is applied, and a link of a verdict leads to a section.
#[tokio::test]
#[ignore = "needs Chromium: make screenshots"]
async fn runbook() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let mut browser = Browser::start().await;
    let url = format!("http://127.0.0.1:{}/runbook#redis-refuses", sidecar.http_port());
    for (screen, kind) in [(DESKTOP, "desktop"), (PHONE, "phone")] {
        browser.open(&url, screen).await;
        let found = "document.querySelector('h2:target')?.textContent + ' ' + \
                     getComputedStyle(document.querySelector('td')).verticalAlign";
        let began = tokio::time::Instant::now();
        while browser.value(found).await != "Redis refuses top" {
            assert!(began.elapsed() < PATIENCE, "{kind}: {}", browser.value(found).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let tables = "[...document.querySelectorAll('div')].filter((one) => \
                      one.scrollWidth > one.clientWidth).length";
        assert_eq!(browser.value(tables).await, 0, "{kind}: a table is wider than the screen");
        keep(&mut browser, &format!("runbook-{kind}")).await;
    }
}
