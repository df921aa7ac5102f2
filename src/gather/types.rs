//! The types of a database's own, as far as their values can be read as those of a built-in type.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::decode::{Relation, Type};

/// Past this many, what is known is forgotten: oids of dropped types stay behind (I6). A type is
/// described again with each relation that has it.
const TYPE_COUNT_MAX: usize = 4_096;

/// The built-in types that a domain may be of, as far as it matters which one it is, by their names
/// and oids in `pg_type.dat`, which never change.
const BUILT_IN: [(&str, u32); 17] = [
    ("bool", 16),
    ("char", 18),
    ("name", 19),
    ("int8", 20),
    ("int2", 21),
    ("int4", 23),
    ("text", 25),
    ("oid", 26),
    ("float4", 700),
    ("float8", 701),
    ("bpchar", 1042),
    ("varchar", 1043),
    ("date", 1082),
    ("timestamp", 1114),
    ("timestamptz", 1184),
    ("numeric", 1700),
    ("uuid", 2950),
];

/// The domains that were described. Postgres describes one before the relation that has it, by its
/// own oid and the name of the type that it is made of (`logicalrep_write_typ` in proto.c).
#[derive(Debug, Default)]
pub(super) struct Types {
    base: HashMap<u32, u32>,
}

impl Types {
    /// Takes the description of a type.
    pub(super) fn push(&mut self, described: &Type) {
        let is_built_in = described.namespace.is_empty() || described.namespace == "pg_catalog";
        let known = BUILT_IN.iter().find(|(name, _)| is_built_in && *name == described.name);
        if self.base.len() >= TYPE_COUNT_MAX {
            self.base.clear();
        }
        match known {
            Some((_, base)) => self.base.insert(described.id, *base),
            None => self.base.remove(&described.id),
        };
    }

    /// The relation, its domains as the types that they are made of.
    pub(super) fn resolve(&self, mut relation: Arc<Relation>) -> Arc<Relation> {
        if relation.columns.iter().any(|column| self.base.contains_key(&column.type_id)) {
            for column in &mut Arc::make_mut(&mut relation).columns {
                column.type_id = self.base.get(&column.type_id).copied().unwrap_or(column.type_id);
            }
        }
        relation
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Types;
    use crate::decode::{Column, Relation, ReplicaIdentity, Type};

    fn resolved(types: &Types, type_id: u32) -> u32 {
        let column = Column { is_key: false, name: "c".to_owned(), type_id, type_modifier: -1 };
        let relation = Relation {
            id: 1,
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column],
        };
        types.resolve(Arc::new(relation)).columns[0].type_id
    }

    #[test]
    fn a_domain_is_the_type_that_it_is_made_of() {
        let mut types = Types::default();
        let domain = |namespace: &str, name: &str| Type {
            id: 70_000,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        types.push(&domain("", "int4"));
        assert_eq!((resolved(&types, 70_000), resolved(&types, 25)), (23, 25));
        // Dropped, and its oid given to another.
        types.push(&domain("public", "int4"));
        assert_eq!(resolved(&types, 70_000), 70_000);
        for id in 80_000..90_000 {
            types.push(&Type { id, ..domain("", "int4") });
        }
        assert!(types.base.len() <= super::TYPE_COUNT_MAX);
    }
}
