//! The text that a target's keys begin with, before what the rules say: added to each name on its
//! way to the server, and taken off on the way back, so that nobody else knows of it.

use std::borrow::Cow;

use crate::config;
use crate::keys::Pattern;

/// `redis.prefix`; mostly empty.
#[derive(Clone, Debug)]
pub(super) struct Prefix(Box<[u8]>);

impl Prefix {
    pub(super) fn of(redis: &config::Redis) -> Prefix {
        Prefix(redis.prefix.as_bytes().into())
    }

    /// A name as the server knows it.
    pub(super) fn add<'a>(&self, name: &'a [u8]) -> Cow<'a, [u8]> {
        if self.0.is_empty() { Cow::Borrowed(name) } else { [&self.0, name].concat().into() }
    }

    /// A name as the rules know it; `None` for one of somebody else.
    pub(super) fn strip<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        name.strip_prefix(&*self.0)
    }

    /// Like [`Prefix::strip`], of a name that is ours.
    pub(super) fn take(&self, mut name: Vec<u8>) -> Option<Vec<u8>> {
        if !self.0.is_empty() {
            self.strip(&name)?;
            name.drain(..self.0.len());
        }
        Some(name)
    }

    /// A pattern of names as the server knows them; `None` for all that it has.
    pub(super) fn pattern<'a>(&self, pattern: Option<&'a [u8]>) -> Option<Cow<'a, [u8]>> {
        if self.0.is_empty() {
            return pattern.map(Cow::Borrowed);
        }
        let own = Pattern::literal(&self.0);
        Some([own.as_bytes(), pattern.unwrap_or(b"*")].concat().into())
    }
}

#[cfg(test)]
mod tests {
    use super::Prefix;

    #[test]
    fn a_prefix_is_added_and_taken_off_and_is_no_pattern() {
        let (none, own) = (Prefix(Box::default()), Prefix(Box::from(*b"a[*]:")));
        assert_eq!((&*none.add(b"k"), none.take(b"k".to_vec())), (&b"k"[..], Some(b"k".to_vec())));
        assert_eq!((none.pattern(None), none.pattern(Some(b"k*")).unwrap()), (None, b"k*".into()));
        assert_eq!((&*own.add(b"k"), own.strip(b"a[*]:k")), (&b"a[*]:k"[..], Some(&b"k"[..])));
        assert_eq!(
            [&b"k"[..], b"ax:k", b"a[*]"].map(|name| own.take(name.to_vec())),
            [None, None, None]
        );
        assert_eq!(own.take(b"a[*]:".to_vec()), Some(Vec::new()));
        assert_eq!(&*own.pattern(None).unwrap(), br"a\[\*\]:*");
        assert_eq!(&*own.pattern(Some(b"k?")).unwrap(), br"a\[\*\]:k?");
    }
}
