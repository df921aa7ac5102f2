//! The slot is on a standby (Postgres 16), the gate asks the primary. On an older server each test
//! holds what walsweep says there instead.

mod history;
mod servers;

use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::Postgres;

use crate::support::{Bed, PATIENCE, Proxy, Settings, Sidecar, eventually, text};

/// The first version with slots on standbys.
const VERSION_MIN: i32 = 16;

/// Settings that a standby with a slot is to have.
const SETTINGS: [&str; 2] = ["hot_standby_feedback = on", "primary_slot_name = 'standby'"];

/// A primary, and a standby behind a proxy that can be pointed at another one.
struct Pair {
    /// Before the bed, in whose folder its data is.
    standby: Postgres,
    bed: Bed,
    front: Proxy,
}

impl Pair {
    /// Both with these lines in `postgresql.conf`; `None`, and the refusal held, on a server that
    /// is too old.
    async fn start(conf: &[&str]) -> Option<Pair> {
        let bed = Bed::new(conf).await;
        if bed.version().await < VERSION_MIN {
            refused(&bed).await;
            return None;
        }
        bed.sql.run("select pg_create_physical_replication_slot('standby')").await;
        let standby = bed.postgres.standby("standby", &SETTINGS).await.unwrap();
        let front = Proxy::to_port(standby.port());
        Some(Pair { standby, bed, front })
    }

    /// Rules for items, the slot on the standby.
    fn settings(&self) -> Settings {
        let url = self.front.url(&self.standby.url(), self.standby.port());
        on_standby(self.bed.settings(), &url)
    }

    /// A running sidecar.
    async fn sidecar(&self) -> Sidecar {
        let sidecar = Sidecar::set_up(self.settings()).await;
        self.settled().await;
        sidecar
    }

    /// Changes a row; gives its key.
    async fn update(&self, id: u32) -> String {
        let update = format!("update item set version = version + 1 where id = {id}");
        self.bed.sql.run(&update).await;
        format!("item:{id}")
    }

    /// A cached row is changed, and its key goes.
    async fn works(&self, id: u32) {
        self.bed.fill(&[&format!("item:{id}")]).await;
        let key = self.update(id).await;
        self.bed.gone(&key).await;
    }

    /// Waits until everything that is committed by now is confirmed on the standby.
    async fn settled(&self) {
        let position = self.bed.position().await;
        eventually(PATIENCE, "everything is confirmed", || async {
            self.bed.sql.run("select pg_logical_emit_message(false, 'settle', '')").await;
            confirmed(&self.standby).await >= Some(position)
        })
        .await;
    }

    /// Goes on with another standby, made from the primary as it is now.
    async fn rebuild(&mut self, name: &str) -> Postgres {
        let rebuilt = self.bed.postgres.standby(name, &SETTINGS).await.unwrap();
        self.front.retarget(([127, 0, 0, 1], rebuilt.port()).into());
        self.front.reset();
        std::mem::replace(&mut self.standby, rebuilt)
    }
}

/// The settings with the slot on the standby behind `url`.
fn on_standby(settings: Settings, url: &str) -> Settings {
    let postgres = format!("replication_url = {url:?}\nslot_on = \"standby\"");
    Settings { postgres, ..settings }
}

/// The `confirmed_flush_lsn` of walsweep's slot there; `None` if there is none.
async fn confirmed(server: &Postgres) -> Option<Lsn> {
    let client = server.connect().await.ok()?;
    let query = "select confirmed_flush_lsn::text from pg_replication_slots
                  where slot_name = 'walsweep'";
    let row = client.query_opt(query, &[]).await.ok()??;
    row.get::<_, Option<String>>(0)?.parse().ok()
}

fn check(sidecar: &Sidecar) -> String {
    text(&sidecar.command(&["check", "--json"]))
}

/// A server that knows no slots on standbys is refused, and nothing is made there.
async fn refused(bed: &Bed) {
    let standby = bed.postgres.standby("standby", &[]).await.unwrap();
    let mut sidecar = Sidecar::new(on_standby(bed.settings(), &standby.url()));
    let setup = text(&sidecar.command(&["setup"]));
    assert!(setup.contains("needs PostgreSQL 16"), "{setup}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    sidecar.wait_log("needs PostgreSQL 16").await;
    let left = "select (select count(*) from pg_replication_slots)
                     + (select count(*) from pg_publication)";
    assert_eq!(bed.sql.one::<i64>(left).await, 0, "nothing was made");
}

/// How often everything was swept so far.
async fn resyncs(sidecar: &Sidecar) -> f64 {
    sidecar.metric_sum("walsweep_resyncs_total").await
}
