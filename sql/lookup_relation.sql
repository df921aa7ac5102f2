-- Which relation a name in a lookup's query means to the role; NULL if none. Asked with the role's
-- own view (sql/as_role.sql), so every name is qualified. Privileges: none. Versions: 14 and later.
-- Takes no lock of the relation. $1: the name, as the query has it.
select pg_catalog.to_regclass($1)::pg_catalog.oid
