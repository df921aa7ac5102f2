-- Who has, or waits for, an exclusive lock on a relation, so that nobody can read it.
-- Privileges: none; of another role's session the name is NULL. Versions: 14 and later.
-- It locks nothing that others wait for. $1: the relation's oid. Rows: the process, NULL for a
-- prepared transaction; its application_name; the relation. One that has it comes first.
select l.pid, a.application_name, n.nspname || '.' || c.relname
  from pg_locks l
  join pg_class c on c.oid = l.relation
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock'
   and l.database = (select oid from pg_database where datname = current_database())
   and l.relation = $1
   and l.pid is distinct from pg_backend_pid()
 order by not l.granted, l.waitstart nulls first, l.pid
 limit 1
