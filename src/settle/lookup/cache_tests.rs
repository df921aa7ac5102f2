//! When an answer is kept, for how long, and how many.

use std::cell::RefCell;

use super::cache::Cache;
use crate::config::{Located, Location, LookupRows, Missing, TableName};
use crate::keys::{Answers, Found, Lookup, LookupId, Reads, Wanted};
use crate::lsn::Lsn;
use crate::settle::{Error, Holder, Probe, Snapshot};

const GAME: u32 = 16_400;
const CLUB: u32 = 16_500;

fn lookup(name: &str, tables: &[u32], cache: usize) -> Lookup {
    let table = |oid: &u32| (*oid, TableName { schema: "s".to_owned(), name: oid.to_string() });
    let reads = Reads { tables: tables.iter().map(table).collect(), search_path: String::new() };
    Lookup {
        name: name.to_owned(),
        sql: Located { value: String::new(), at: Location::default() },
        params: Vec::new(),
        columns: Vec::new(),
        cache,
        reads: (!tables.is_empty()).then_some(reads),
        rows: LookupRows::One,
        limit: 1_000,
        missing: Missing::Widen,
        keyed: None,
    }
}

/// The snapshots that the looks see in turn, beginning with the last; the fence is 20.
struct Looks(RefCell<Vec<&'static str>>);

impl Probe for Looks {
    async fn snapshot(&self) -> Result<Snapshot, Error> {
        let text = self.0.borrow_mut().pop().ok_or(Error::Timeout)?;
        Ok(text.parse().unwrap())
    }

    async fn fence(&self) -> Result<u64, Error> {
        Ok(20)
    }

    async fn position(&self) -> Result<Lsn, Error> {
        Ok(Lsn::ZERO)
    }

    async fn committed(&self, xids: &[u64]) -> Result<Vec<bool>, Error> {
        Ok(vec![false; xids.len()])
    }

    /// 13 changes nothing that is looked up.
    async fn holders(&self, xids: &[u64]) -> Result<Vec<Holder>, Error> {
        let matters = xids.iter().filter(|xid| **xid != 13);
        Ok(matters.map(|xid| Holder { xid: *xid, pid: None, prepared: None }).collect())
    }
}

/// Two lookups: 0 reads both tables, 1 one of them; 2 is not kept.
async fn opened(count: usize) -> Cache {
    let lookups =
        [lookup("both", &[GAME, CLUB], count), lookup("club", &[CLUB], count), lookup("n", &[], 9)];
    let cache = Cache::new(&lookups).unwrap();
    cache.clone().open(Looks(vec!["21:21:"].into())).await;
    cache
}

fn wanted(lookup: u16, number: usize) -> Wanted {
    Wanted::for_tests(lookup, number.to_string().as_bytes())
}

fn row(text: &str) -> Found {
    Found::row(&[Some(text), None])
}

fn answers(lookup: u16, numbers: impl IntoIterator<Item = usize>, found: &Found) -> Answers {
    let mut answers = Answers::default();
    numbers.into_iter().for_each(|one| answers.insert(wanted(lookup, one), found.clone()));
    answers
}

/// Asks, and is answered at once.
fn ask(cache: &Cache, lookup: u16, number: usize) {
    cache.keep(&cache.begin(), &answers(lookup, [number], &row("x")));
}

fn has(cache: &Cache, lookup: u16, number: usize) -> bool {
    cache.get(&wanted(lookup, number)).is_some()
}

#[tokio::test]
async fn answers_are_kept_until_a_table_of_theirs_changes() {
    let cache = opened(10).await;
    for lookup in 0..3 {
        ask(&cache, lookup, 1);
    }
    assert!(has(&cache, 0, 1) && has(&cache, 1, 1), "as they were told");
    assert!(!has(&cache, 0, 2), "another row");
    assert!(!has(&cache, 2, 1), "nothing tells of its changes");
    cache.changed(77, 5);
    assert!(!cache.awaits(5) && has(&cache, 0, 1), "nobody reads it");
    cache.changed(GAME, 6);
    assert!(cache.awaits(6) && !has(&cache, 0, 1) && has(&cache, 1, 1));
    assert_eq!(cache.get(&wanted(1, 1)), Some(row("x")));
}

#[tokio::test]
async fn nothing_is_kept_while_a_change_may_be_invisible() {
    let cache = opened(10).await;
    cache.changed(CLUB, 5);
    cache.changed(CLUB, 6);
    cache.changed(CLUB, 5);
    let meanwhile = cache.begin();
    ask(&cache, 1, 1);
    cache.ended(5);
    ask(&cache, 1, 1);
    assert!(!has(&cache, 1, 1), "one of the two may still be invisible");
    cache.ended(6);
    cache.keep(&meanwhile, &answers(1, [1], &row("x")));
    assert!(!has(&cache, 1, 1), "its query began too early");
    ask(&cache, 1, 1);
    assert!(has(&cache, 1, 1));
}

#[tokio::test]
async fn an_answer_that_a_change_overtook_is_not_kept() {
    let cache = opened(10).await;
    let began = cache.begin();
    cache.changed(CLUB, 5);
    cache.ended(5);
    cache.keep(&began, &answers(1, [1], &row("old")));
    assert!(!has(&cache, 1, 1));
    let began = cache.begin();
    cache.forget(LookupId(1));
    cache.keep(&began, &answers(1, [1], &row("of a lost session")));
    assert!(!has(&cache, 1, 1));
}

#[tokio::test]
async fn failures_are_not_kept_and_no_row_is_an_answer() {
    let cache = opened(10).await;
    for (number, found, is_kept) in [
        (1, Found::Failed, false),
        (2, Found::None, true),
        (3, Found::Many, true),
        (4, Found::Large, true),
    ] {
        cache.keep(&cache.begin(), &answers(0, [number], &found));
        assert_eq!(has(&cache, 0, number), is_kept, "{found:?}");
    }
}

/// Transactions that were committed before the stream began are in no stream.
#[tokio::test(start_paused = true)]
async fn it_opens_when_everything_from_before_the_stream_has_ended() {
    let cache = Cache::new(&[lookup("club", &[CLUB], 10)]).unwrap();
    ask(&cache, 0, 1);
    assert!(!has(&cache, 0, 1), "nothing was asked yet");
    let stuck = vec!["12:30:12", "12:30:12"];
    cache.clone().open(Looks(stuck.into())).await;
    ask(&cache, 0, 1);
    assert!(!has(&cache, 0, 1), "12 was there before, and then the connection broke");
    let looks = vec!["13:30:13,25", "13:30:13,20", "12:30:12,13"];
    cache.clone().open(Looks(looks.into())).await;
    ask(&cache, 0, 1);
    assert!(has(&cache, 0, 1), "25 began later, and 13 does not matter");
}

/// I6.
#[tokio::test]
async fn it_is_bounded_in_number_and_in_bytes_and_keeps_what_is_asked_for() {
    for count in [1, 2, 3, 10] {
        let cache = opened(count).await;
        for number in 0..100 {
            ask(&cache, 0, number);
            assert!(has(&cache, 0, number) && (count == 1 || has(&cache, 0, 0)), "{number}");
            assert!(cache.len(0) <= count.next_multiple_of(2), "{} of {count}", cache.len(0));
        }
    }
    let (cache, large) = (opened(1 << 20).await, row(&"x".repeat(100_000)));
    cache.keep(&cache.begin(), &answers(0, 0..200, &large));
    assert!((5..=10).contains(&cache.len(0)), "{} of 100 kB in 1 MiB", cache.len(0));
    cache.keep(&cache.begin(), &answers(1, [7], &row(&"x".repeat(3 << 20))));
    assert!(!has(&cache, 1, 7), "more than half");
}

#[test]
fn without_a_lookup_that_may_be_kept_there_is_none() {
    assert!(Cache::new(&[]).is_none());
    assert!(Cache::new(&[lookup("n", &[], 10), lookup("off", &[CLUB], 0)]).is_none());
}
