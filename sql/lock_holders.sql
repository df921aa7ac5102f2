-- Who has, or waits for, an exclusive lock on a table of this database. Privileges: none; of
-- another role's session the name is NULL. Versions: 14 and later. It locks nothing that others
-- wait for. Rows: the process, NULL for a prepared transaction; its application_name; the table.
-- Those that have one come first.
select l.pid, a.application_name, n.nspname || '.' || c.relname
  from pg_locks l
  join pg_class c on c.oid = l.relation
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock'
   and l.database = (select oid from pg_database where datname = current_database())
   and l.pid is distinct from pg_backend_pid()
   and c.oid >= 16384 and c.relkind in ('r', 'p', 'v', 'm', 'f')
 order by not l.granted, l.waitstart nulls first, l.pid
 limit 1
