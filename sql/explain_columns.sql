-- The columns of a table or materialized view, in their order; no row for one that is not there.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It takes no
-- lock on the table.
-- $1 and $2 are schema and name.
select a.attname::text
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute a on a.attrelid = c.oid
 where n.nspname = $1
   and c.relname = $2
   and c.relkind in ('r', 'p', 'm')
   and a.attnum > 0
   and not a.attisdropped
 order by a.attnum
