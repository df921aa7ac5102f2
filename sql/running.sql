-- Transactions with an id that run, in whichever database, the longest first: a slot that is
-- created waits until each has ended.
-- Privileges: none (what another role's session does is not told, only who it is). Versions: 14 and
-- later.
-- A transaction holds a lock on its own id for as long as it runs, and a subtransaction on its own:
-- of each transaction the oldest id counts. A prepared one has no process.
-- Takes no lock; reads the lock table under its light-weight locks, for some microseconds.
select held.pid, held.xid, held.gid, held.database, held.name
  from (select distinct on (l.virtualtransaction)
               l.pid,
               l.transactionid::text::bigint as xid,
               age(l.transactionid) as age,
               p.gid,
               coalesce(a.datname, p.database)::text as database,
               a.application_name as name
          from pg_locks l
          left join pg_prepared_xacts p on l.pid is null and p.transaction = l.transactionid
          left join pg_stat_activity a on a.pid = l.pid
         where l.locktype = 'transactionid'
           and l.mode = 'ExclusiveLock'
           and l.granted
           and l.pid is distinct from pg_backend_pid()
         order by l.virtualtransaction, age(l.transactionid) desc) held
 order by held.age desc
 limit 100
