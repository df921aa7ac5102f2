-- Who has a lock on some tables that keeps a statement of `setup` waiting, those that have it
-- longest first. Privileges: none; of other roles' sessions the time is NULL without
-- pg_read_all_stats. Versions: 14 to 18. It locks none of these tables.
-- $1 and $2 are their schemas and names; $3 whether the statement wants ACCESS EXCLUSIVE, which any
-- lock is in the way of, or SHARE UPDATE EXCLUSIVE.
-- Rows: the process, NULL for a prepared transaction; its application_name; since when its
-- transaction runs; a table.
select l.pid, a.application_name, to_char(min(a.xact_start), 'YYYY-MM-DD HH24:MI:SS TZ'),
       min(n.nspname || '.' || c.relname)
  from unnest($1::text[], $2::text[]) as wanted (schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
  join pg_locks l on l.locktype = 'relation' and l.relation = c.oid and l.granted
                 and l.database = (select oid from pg_database where datname = current_database())
  left join pg_stat_activity a on a.pid = l.pid
 where l.pid is distinct from pg_backend_pid()
   and ($3 or l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                         'ExclusiveLock', 'AccessExclusiveLock'))
 group by l.pid, a.application_name
 order by min(a.xact_start) nulls last, l.pid
 limit 3
