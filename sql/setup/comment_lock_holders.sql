-- Who has the lock of walsweep's comments, as a text; the names of sessions are for all to see.
-- Privileges: none. Versions: 14 to 18. It stands in a block of PL/pgSQL, on one line.
coalesce(
  (select pg_catalog.string_agg(
            case when l.pid is null then 'a prepared transaction'
                 else pg_catalog.format('Postgres process %s of role %s (%s)', l.pid, a.usename,
                                        a.application_name) end, ', ')
     from pg_catalog.pg_locks l
     left join pg_catalog.pg_stat_activity a on a.pid operator(pg_catalog.=) l.pid
    where l.locktype operator(pg_catalog.=) 'advisory' and l.granted
      and l.database operator(pg_catalog.=) (
            select d.oid from pg_catalog.pg_database d
             where d.datname operator(pg_catalog.=) pg_catalog.current_database())
      and l.classid operator(pg_catalog.=) 2002873459::pg_catalog.oid
      and l.objid operator(pg_catalog.=) 2003133808::pg_catalog.oid
      and l.objsubid operator(pg_catalog.=) 2), 'somebody')
