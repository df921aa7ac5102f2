//! Who is told which keys are written, as `CLIENT TRACKING` tells it: the names of a turn of
//! Redis's event loop leave when the turn ends, behind the replies to the commands of that turn.

use std::cell::RefCell;

use walsweep::config;
use walsweep::keys::{KeySet, Pattern, Rules};
use walsweep::sweep::Observer;

use crate::random::Random;

/// The reasons for which walsweep wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sees {
    /// `refill.observe`.
    pub(crate) refills: bool,
    /// `sweep.index`, and its memory in bytes.
    pub(crate) index: Option<usize>,
}

/// The client's side: who observes on the connection that there is.
pub(crate) struct Eyes {
    sees: Sees,
    keys: KeySet,
    patterns: Vec<Pattern>,
    observer: RefCell<Option<Observer>>,
}

/// The server's side: names that are still to be told.
pub(crate) struct Told {
    observer: Observer,
    /// In the order of the writes; those of the turns before this one leave before the next reply.
    names: Vec<String>,
    /// So many of them are of turns before this one.
    of_before: usize,
}

impl Eyes {
    pub(crate) fn new(rules: &Rules, sees: Sees) -> Eyes {
        let own = rules.own_patterns();
        let patterns = own.patterns().map(|(_, pattern)| pattern.clone()).collect();
        let keys = if sees.refills { rules.everything() } else { own };
        let patterns = if sees.index.is_some() { patterns } else { Vec::new() };
        Eyes { sees, keys, patterns, observer: RefCell::default() }
    }

    pub(crate) fn observer(&self) -> Option<Observer> {
        self.observer.borrow().clone()
    }

    pub(crate) fn index_patterns(&self) -> Vec<Pattern> {
        self.patterns.clone()
    }

    /// A connection is made, on which names are told.
    pub(crate) fn open(&self) -> Option<Told> {
        if self.sees == Sees::default() {
            return None;
        }
        let index = self.sees.index.map(|bytes| (self.patterns.clone(), bytes));
        let redis = config::Redis::at("redis://memory");
        let observer = Observer::new((&redis, "walsweep"), (&self.keys, 1 << 20), index);
        self.observer.replace(Some(observer.clone()));
        Some(Told { observer, names: Vec::new(), of_before: 0 })
    }

    /// The connection is lost.
    pub(crate) fn close(&self) {
        if let Some(observer) = self.observer.take() {
            observer.close();
        }
    }
}

impl Told {
    /// Somebody wrote a key, or removed it. Its name leaves at once, or as late as it may.
    pub(crate) fn wrote(&mut self, key: &str, random: &Random) {
        self.names.push(key.to_owned());
        if random.chance(50) {
            self.leave(self.names.len());
        }
    }

    /// The connection itself removed a key: it is not told of it, if nobody touches the key in the
    /// same turn after it (`NOLOOP`).
    pub(crate) fn removed_itself(&mut self, key: &str) {
        let mut at = 0;
        let of_before = self.of_before;
        self.names.retain(|name| {
            at += 1;
            at <= of_before || name != key
        });
    }

    /// A command of its connection is about to run: in the turn of the latest writes, or later.
    pub(crate) fn turn(&mut self, random: &Random) {
        let ended = if random.chance(50) { self.names.len() } else { self.of_before };
        self.leave(ended);
        self.of_before = self.names.len();
    }

    fn leave(&mut self, names: usize) {
        for name in self.names.drain(..names) {
            self.observer.wrote(name.as_bytes());
        }
        self.of_before = self.of_before.saturating_sub(names);
    }
}
