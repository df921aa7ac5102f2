-- The tables and materialized views that somebody may have meant, some thousands at most.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It takes no
-- lock on any table.
select n.nspname::text, c.relname::text
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'm')
   and n.nspname <> 'information_schema'
   and not starts_with(n.nspname, 'pg_')
 order by 1, 2
 limit 5000
