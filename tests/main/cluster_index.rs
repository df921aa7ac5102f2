//! `[sweep] index` in a cluster: each primary has an index of its own.

use walsweep_stage::throwaway::Signal;

use crate::cluster::{Shop, keys};
use crate::support::{PATIENCE, Settings, Sidecar, eventually};

/// Each primary has an index of its own; what comes with a slot is not told as what is written.
#[tokio::test]
async fn each_primary_has_an_index_and_one_that_gets_slots_makes_it_anew() {
    let shop = Shop::start(3, 0).await;
    shop.fill(&keys("list:team 1:before:#", 30)).await;
    let settings = Settings { sweep: "index = true".to_owned(), ..shop.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    shop.bed.settled().await;
    let is_whole = async || sidecar.metric_sum("walsweep_index_whole").await > 0.5;
    eventually(PATIENCE, "all are whole", is_whole).await;
    let scans = async || sidecar.metric_sum("walsweep_sweep_seconds_count").await;
    let (lists, others) = (keys("list:team 1:#", 60), keys("list:team 2:#", 60));
    shop.fill(&[&lists[..], &others[..]].concat()).await;
    let before = scans().await;
    shop.change(1).await;
    shop.gone(&lists).await;
    assert_eq!(shop.names("list:team 2:*").await.len(), others.len());
    assert!(scans().await < before + 0.5, "a pass by SCAN was made");
    let tag = "list:team 1:{tag}".to_owned();
    shop.fill_many(&keys(&format!("{tag}:#"), 50)).await;
    let (slot, owner) = shop.place(&tag).await;
    let to = (owner + 1) % 3;
    shop.cluster.begin_move(slot, to).await.unwrap();
    shop.cluster.finish_move(slot, to).await.unwrap();
    shop.change(1).await;
    let nothing = async || shop.names("list:team 1:*").await.is_empty();
    eventually(PATIENCE, "keys that moved go", nothing).await;
    let is_made = async || scans().await > before + 0.5;
    eventually(PATIENCE, "the index of who got the slot is made anew", is_made).await;
    eventually(PATIENCE, "all are whole again", is_whole).await;
}

/// Keys that the promoted replica gets before walsweep listens there are found by a SCAN, and later
/// ones by an index of its own.
#[tokio::test]
async fn a_promoted_replica_gets_an_index() {
    let mut shop = Shop::start(3, 1).await;
    let settings = Settings { sweep: "index = true".to_owned(), ..shop.settings() };
    let sidecar = Sidecar::set_up(settings).await;
    let is_whole = async || sidecar.metric_sum("walsweep_index_whole").await > 0.5;
    shop.bed.settled().await;
    eventually(PATIENCE, "all are whole", is_whole).await;
    let (before, meanwhile) = (keys("list:team 1:#", 60), keys("list:team 1:new:#", 60));
    shop.fill(&before).await;
    sidecar.signal(Signal::Stop);
    shop.cluster.node_mut(0).unwrap().kill9().await.unwrap();
    shop.cluster.promoted(3).await.unwrap();
    shop.fill(&meanwhile).await;
    sidecar.signal(Signal::Cont);
    shop.change(1).await;
    shop.gone(&[&before[..], &meanwhile[..]].concat()).await;
    eventually(PATIENCE, "all are whole again", is_whole).await;
    let scans = async || sidecar.metric_sum("walsweep_sweep_seconds_count").await;
    let (scanned, lists) = (scans().await, keys("list:team 1:later:#", 60));
    shop.fill(&lists).await;
    shop.change(1).await;
    shop.gone(&lists).await;
    assert!(scans().await < scanned + 0.5, "a pass by SCAN was made");
}
