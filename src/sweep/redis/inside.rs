//! Removals inside of keys: of fields of hashes, and of the keys that sets name.
//!
//! A hash or set may be of any size, so that it is read in pages, each of which holds Redis for no
//! longer than a page of SCAN. What a page names is removed before the next one is read: nothing
//! but a page is ever kept here.
//!
//! A member of a set is the name of a key. The key goes first; the member is taken out of the set
//! with its second removal, and only if the key is not there by then. So whoever writes a key
//! first, and puts it into the set after that, finds it there for as long as the key lives.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::act::{Act, Answer, Inside, Turn, Verb};
use super::node::{Error, Kind, Page, Removes};
use super::pace::Pace;
use super::pass::FILTER_STARS;
use super::unlink::{Refused, Search, one_by_one};
use crate::keys::{Item, ItemKind, Pattern, RuleId};
use crate::sweep::job::Tally;

/// Fields, or keys, that one command removes; about 0.3 ms of Redis's time.
const COMMAND_NAMES: usize = 500;

/// Commands in one round trip.
const COMMANDS: usize = 16;

/// Commands of one field each that make a round trip.
const COMMANDS_OF_ONE: usize = COMMANDS * COMMAND_NAMES;

/// So often a key is read from its beginning, because it is with another server by now.
const BEGINNINGS: u32 = 10;

/// Why Redis did not do what was asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sweep) enum Why {
    /// The user may not, or the key's primary is away.
    Forbidden,
    /// The key is no hash, or neither a set nor a sorted set.
    WrongType,
}

/// Items that Redis refused, by their bytes.
pub(in crate::sweep) type RefusedItems = HashMap<Box<[u8]>, Why>;

/// How items are removed in a key.
pub(in crate::sweep) struct How<'a> {
    /// How much one page may look at.
    pub(in crate::sweep) pace: &'a mut Pace,
    /// Whether members whose keys are gone are taken out of their sets.
    pub(in crate::sweep) trims: bool,
    /// Hears of keys that are removed because a set names them.
    pub(in crate::sweep) told: &'a mut dyn FnMut(&[&[u8]]),
}

/// The outcome in one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::sweep) struct Outcome {
    /// Fields and keys that were there.
    pub(in crate::sweep) removed: u64,
    pub(in crate::sweep) refused: Option<Why>,
}

/// A pace of pages that each hold Redis for less than so long.
pub(in crate::sweep) fn pace(max_stall: Duration) -> Pace {
    Pace::new(max_stall, 1.0)
}

/// Removes items that need no page, in as few round trips as may be; each in the key that goes with
/// it, by a rule. Counts fields as keys. What is refused is noted in the tally.
///
/// # Errors
///
/// The first of the node; all are tried again then.
pub(in crate::sweep) async fn direct<R: Removes>(
    node: &R,
    mut items: Vec<(RuleId, &[u8], Item<'_>)>,
    tally: &mut Tally,
) -> Result<(), Error> {
    items.sort_unstable_by_key(|(rule, key, item)| (rule.0, *key, item.bytes()));
    items.dedup_by_key(|(rule, key, item)| (rule.0, *key, item.bytes()));
    for items in items.chunks(COMMANDS_OF_ONE) {
        let fields: Vec<_> = items.iter().map(|(_, _, item)| item.only_field()).collect();
        let (mut acts, mut groups) = (Vec::new(), Vec::new());
        let mut at = 0;
        let is_alike = |one: &(RuleId, &[u8], Item<'_>), other: &(RuleId, &[u8], Item<'_>)| {
            let are_fields = !one.2.is_whole_hash() && !other.2.is_whole_hash();
            (one.0, one.1) == (other.0, other.1) && are_fields
        };
        for group in items.chunk_by(is_alike).flat_map(|group| group.chunks(COMMAND_NAMES)) {
            let fields = fields.get(at..at + group.len()).unwrap_or_default();
            at += group.len();
            let Some((rule, key, first)) = group.first() else { continue };
            let verb = match first.is_whole_hash() {
                true => Verb::Unlink,
                false => Verb::Hdel(fields.iter().flatten().map(|field| &**field).collect()),
            };
            acts.push(Act { key, verb });
            groups.push((*rule, group));
        }
        for ((rule, group), answer) in groups.into_iter().zip(node.act(&acts).await?) {
            match counted(&answer)? {
                Ok(removed) => {
                    let absent = (group.len() as u64).saturating_sub(removed);
                    tally.add(rule, removed, absent);
                }
                Err(why) => {
                    let bytes = group.iter().map(|(_, _, item)| (Box::from(item.bytes()), why));
                    tally.refused_items.extend(bytes);
                }
            }
        }
    }
    Ok(())
}

/// Removes an item in one key, whatever it takes.
///
/// # Errors
///
/// The first of the node.
pub(in crate::sweep) async fn in_key<R: Removes>(
    node: &R,
    key: &[u8],
    item: Item<'_>,
    how: &mut How<'_>,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let done = match item.kind() {
        ItemKind::Field => fields(node, key, item, (how, &mut outcome)).await?,
        ItemKind::Tag => tag(node, key, (how, &mut outcome)).await?,
    };
    outcome.refused = done.err();
    Ok(outcome)
}

/// Removes the fields that a pattern matches.
async fn fields<R: Removes>(
    node: &R,
    key: &[u8],
    item: Item<'_>,
    (how, outcome): (&mut How<'_>, &mut Outcome),
) -> Result<Result<(), Why>, Error> {
    let pattern = Pattern::parse(item.field());
    let filter = pattern.cut_after_stars(FILTER_STARS);
    let mut pages = Pages::of(key, Inside::Hash, Some(&filter));
    loop {
        let page = match pages.next(node, how.pace).await? {
            Ok(Some(page)) => page,
            Ok(None) => return Ok(Ok(())),
            Err(why) => return Ok(Err(why)),
        };
        let found = page.keys.iter().map(Vec::as_slice).filter(|field| pattern.matches(field));
        let found: Vec<&[u8]> = found.collect();
        let acts: Vec<Act<'_>> = found
            .chunks(COMMAND_NAMES)
            .map(|fields| Act { key, verb: Verb::Hdel(fields.to_vec()) })
            .collect();
        for acts in acts.chunks(COMMANDS) {
            for answer in node.act(acts).await? {
                match counted(&answer)? {
                    Ok(removed) => outcome.removed += removed,
                    Err(why) => return Ok(Err(why)),
                }
            }
        }
    }
}

/// Removes the keys that a set names.
async fn tag<R: Removes>(
    node: &R,
    key: &[u8],
    (how, outcome): (&mut How<'_>, &mut Outcome),
) -> Result<Result<(), Why>, Error> {
    let inside = match one(node, Act { key, verb: Verb::Type }).await? {
        Answer::Type(kind) if kind == "set" => Inside::Set,
        Answer::Type(kind) if kind == "zset" => Inside::SortedSet,
        Answer::Type(kind) if kind == "none" => return Ok(Ok(())),
        Answer::Forbidden => return Ok(Err(Why::Forbidden)),
        _ => return Ok(Err(Why::WrongType)),
    };
    let mut pages = Pages::of(key, inside, None);
    let mut refused = Refused::new();
    loop {
        let page = match pages.next(node, how.pace).await? {
            Ok(Some(page)) => page,
            Ok(None) => break,
            Err(why) => return Ok(Err(why)),
        };
        // Its own name is no reason for it to go before it is read.
        let is_key = |name: &&[u8]| *name != key && !node.is_own(name);
        let names: Vec<&[u8]> = page.keys.iter().map(Vec::as_slice).filter(is_key).collect();
        outcome.removed += members(node, &names, &mut refused).await?;
        (how.told)(&names);
        if how.trims {
            trim(node, (key, inside), &names).await?;
        }
    }
    Ok(if refused.is_empty() { Ok(()) } else { Err(Why::Forbidden) })
}

/// Removes keys by their names; gives how many were there, and notes which may not be removed.
async fn members<R: Removes>(
    node: &R,
    names: &[&[u8]],
    refused: &mut Refused,
) -> Result<u64, Error> {
    let groups: Vec<Vec<&[u8]>> = names.chunks(COMMAND_NAMES).map(<[_]>::to_vec).collect();
    let mut removed = 0;
    for groups in groups.chunks(COMMANDS) {
        for (group, count) in groups.iter().zip(node.unlink(groups).await?) {
            removed += match count {
                Some(count) => count,
                None => {
                    let mut found = Refused::new();
                    let removed = one_by_one(node, group, Search::Quick, &mut found).await?;
                    // One says as much as a million.
                    refused.extend(found.into_iter().take(1));
                    removed
                }
            };
        }
    }
    Ok(removed)
}

/// Takes members out of their set whose keys are not there. Those that stay do no harm, and are
/// looked at with the next removal: so an error that leaves the connection standing is none.
async fn trim<R: Removes>(
    node: &R,
    (key, inside): (&[u8], Inside),
    names: &[&[u8]],
) -> Result<(), Error> {
    for names in names.chunks(COMMAND_NAMES) {
        let verb = Verb::Trim(inside, names.to_vec());
        match node.act(&[Act { key, verb }]).await {
            Ok(_) | Err(Error::Refused(..) | Error::Away(..)) => {}
            Err(lost) => return Err(lost),
        }
    }
    Ok(())
}

/// The fields or members of a key, page by page.
struct Pages<'a> {
    key: &'a [u8],
    inside: Inside,
    pattern: Option<&'a [u8]>,
    /// Where the next page begins; `None` after the last one.
    cursor: Option<u64>,
    /// Who gave the pages so far.
    server: Option<u64>,
    beginnings: u32,
}

impl<'a> Pages<'a> {
    fn of(key: &'a [u8], inside: Inside, pattern: Option<&'a [u8]>) -> Pages<'a> {
        Pages { key, inside, pattern, cursor: Some(0), server: None, beginnings: 1 }
    }

    /// The next page, `None` after the last one; or why there is none.
    async fn next<R: Removes>(
        &mut self,
        node: &R,
        pace: &mut Pace,
    ) -> Result<Result<Option<Page>, Why>, Error> {
        let Some(cursor) = self.cursor else { return Ok(Ok(None)) };
        let turn = Turn { cursor, count: pace.count(), pattern: self.pattern };
        let began = Instant::now();
        let answer = one(node, Act { key: self.key, verb: Verb::Scan(self.inside, turn) }).await?;
        pace.observe(began.elapsed());
        let (page, server) = match answer {
            Answer::Page(page, server) => (page, server),
            Answer::Forbidden => return Ok(Err(Why::Forbidden)),
            _ => return Ok(Err(Why::WrongType)),
        };
        self.cursor = (page.cursor != 0).then_some(page.cursor);
        if self.server.replace(server).is_some_and(|before| before != server) {
            // What the cursor meant, only the server before knew.
            self.cursor = Some(0);
            self.beginnings += 1;
            if self.beginnings > BEGINNINGS {
                let message = "a key goes from one primary to another and back".to_owned();
                return Err(Error::Refused(message, Kind::Other));
            }
        }
        Ok(Ok(Some(page)))
    }
}

/// The answer to one command.
async fn one<R: Removes>(node: &R, act: Act<'_>) -> Result<Answer, Error> {
    let answer = node.act(&[act]).await?.pop();
    answer.ok_or_else(|| Error::new(Kind::Io, "no answer to a command".to_owned()))
}

/// Reads the answer to a removal.
fn counted(answer: &Answer) -> Result<Result<u64, Why>, Error> {
    match answer {
        Answer::Count(count) => Ok(Ok(*count)),
        Answer::Forbidden => Ok(Err(Why::Forbidden)),
        Answer::WrongType => Ok(Err(Why::WrongType)),
        Answer::Type(_) | Answer::Page(..) => {
            Err(Error::new(Kind::Other, "an unexpected answer".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use super::{Act, Answer, How, Inside, Outcome, Page, Removes, Verb, Why, in_key, pace};
    use crate::keys::Item;
    use crate::sweep::redis::node::Error;

    /// A set of which each page is given by one server or the other: cursor, server, member.
    struct Moving {
        pages: RefCell<Vec<(u64, u64, &'static str)>>,
        asked: RefCell<Vec<u64>>,
        kind: &'static str,
    }

    impl Removes for Moving {
        async fn unlink(&self, groups: &[Vec<&[u8]>]) -> Result<Vec<Option<u64>>, Error> {
            Ok(groups.iter().map(|group| Some(group.len() as u64)).collect())
        }

        async fn act(&self, acts: &[Act<'_>]) -> Result<Vec<Answer>, Error> {
            let answer = |act: &Act<'_>| match &act.verb {
                Verb::Type => Answer::Type(self.kind.to_owned()),
                Verb::Scan(Inside::Set, turn) => {
                    self.asked.borrow_mut().push(turn.cursor);
                    let (cursor, server, member) = self.pages.borrow_mut().remove(0);
                    let keys = vec![member.as_bytes().to_vec()];
                    Answer::Page(Page { cursor, keys }, server)
                }
                other => panic!("{other:?}"),
            };
            Ok(acts.iter().map(answer).collect())
        }
    }

    async fn removed(
        kind: &'static str,
        pages: &[(u64, u64, &'static str)],
    ) -> (Moving, Result<Outcome, Error>) {
        let node = Moving { pages: RefCell::new(pages.to_vec()), asked: RefCell::default(), kind };
        let bytes = b"\x00\x03\x00\x00\x00tag";
        let (pace, told) = (&mut pace(Duration::from_millis(1)), &mut |_: &[&[u8]]| ());
        let how = &mut How { pace, trims: false, told };
        let outcome = in_key(&node, b"tag", Item::read(bytes), how).await;
        (node, outcome)
    }

    /// A cursor means nothing to another server than gave it.
    #[tokio::test]
    async fn a_set_that_goes_to_another_server_is_read_from_its_beginning() {
        let pages = [(7, 1, "a"), (9, 1, "b"), (5, 2, "c"), (3, 2, "a"), (0, 2, "d")];
        let (node, outcome) = removed("set", &pages).await;
        assert_eq!(*node.asked.borrow(), [0, 7, 9, 0, 3]);
        assert_eq!(outcome.unwrap(), Outcome { removed: 5, refused: None });
        let to_and_fro: Vec<_> = (0..40).map(|at| (1, at % 2, "a")).collect();
        let (node, outcome) = removed("set", &to_and_fro).await;
        assert!(outcome.unwrap_err().to_string().contains("to another and back"));
        assert!(node.asked.borrow().len() < 40);
    }

    #[tokio::test]
    async fn what_is_no_set_is_refused_and_what_is_not_there_is_not() {
        let (_, outcome) = removed("string", &[]).await;
        assert_eq!(outcome.unwrap().refused, Some(Why::WrongType));
        let (_, outcome) = removed("none", &[]).await;
        assert_eq!(outcome.unwrap(), Outcome::default());
    }
}
