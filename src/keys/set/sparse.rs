//! Values that few of many ids have: a set of a thousand rules costs what is in it.

use crate::keys::label::{RuleId, TemplateId};

/// A value for each id; of those that have the default nothing is kept.
#[derive(Clone, Debug)]
pub(super) struct Sparse<T>(Vec<(u16, T)>);

/// An id that a [`Sparse`] is of.
pub(super) trait Id: Copy {
    fn number(self) -> u16;
    fn of(number: u16) -> Self;
}

impl Id for RuleId {
    fn number(self) -> u16 {
        self.0
    }

    fn of(number: u16) -> RuleId {
        RuleId(number)
    }
}

impl Id for TemplateId {
    fn number(self) -> u16 {
        self.0
    }

    fn of(number: u16) -> TemplateId {
        TemplateId(number)
    }
}

impl<T: Copy + Default> Sparse<T> {
    pub(super) fn new() -> Sparse<T> {
        Sparse(Vec::new())
    }

    /// Where an id is, or would be. A set mostly has the ids of one rule, which follow each other:
    /// then the distance to the first is the place, and a row costs no search for each template.
    fn place(&self, id: impl Id) -> Result<usize, usize> {
        let number = id.number();
        let first = self.0.first().map_or(0, |one| one.0);
        let distance = usize::from(number.wrapping_sub(first));
        if self.0.get(distance).is_some_and(|one| one.0 == number) {
            return Ok(distance);
        }
        self.0.binary_search_by_key(&number, |one| one.0)
    }

    pub(super) fn get(&self, id: impl Id) -> T {
        self.place(id).map_or_else(|_| T::default(), |at| self.0[at].1)
    }

    pub(super) fn get_mut(&mut self, id: impl Id) -> &mut T {
        let at = self.place(id).unwrap_or_else(|at| {
            self.0.insert(at, (id.number(), T::default()));
            at
        });
        &mut self.0[at].1
    }

    /// Those that may have another value than the default, ascending.
    pub(super) fn iter<I: Id>(&self) -> impl Iterator<Item = (I, &T)> {
        self.0.iter().map(|(number, value)| (I::of(*number), value))
    }

    /// The memory that it holds, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<(u16, T)>()
    }
}

#[cfg(test)]
mod tests {
    use super::{RuleId, Sparse};

    #[test]
    fn what_was_never_set_is_the_default_and_costs_nothing() {
        let mut sparse: Sparse<u64> = Sparse::new();
        assert_eq!((sparse.get(RuleId(7)), sparse.bytes()), (0, 0));
        for id in [9, 3, u16::MAX, 3] {
            *sparse.get_mut(RuleId(id)) += u64::from(id);
        }
        let all: Vec<(RuleId, u64)> = sparse.iter().map(|(id, value)| (id, *value)).collect();
        assert_eq!(all, [(RuleId(3), 6), (RuleId(9), 9), (RuleId(u16::MAX), 65_535)]);
    }

    #[test]
    fn each_id_has_its_own_value_with_and_without_gaps() {
        for ids in [vec![5, 6, 7, 8], vec![0, 1, 3, 4], vec![2, 9, 10, 11], vec![u16::MAX, 0]] {
            let mut sparse: Sparse<u64> = Sparse::new();
            for id in &ids {
                *sparse.get_mut(RuleId(*id)) = u64::from(*id) + 1;
            }
            for id in (0..20).chain([u16::MAX]) {
                let told = if ids.contains(&id) { u64::from(id) + 1 } else { 0 };
                assert_eq!(sparse.get(RuleId(id)), told, "{id} of {ids:?}");
            }
        }
    }
}
