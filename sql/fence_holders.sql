-- Which of these transactions may have changed what the rules look at, and who runs them.
-- Privileges: none; the views show these columns to everyone. Versions: 14 to 18. Takes no lock but
-- on catalogs, and reads the lock table once. $1: ids, the lower 32 bits, that a snapshot showed as
-- running; $2, $3: schemas and names of tables and materialized views; $4: oids of further tables;
-- $5: whether changes matter that take no lock, as messages do. Rows: an id of $1, its pid, the
-- name under which it is prepared.
-- Left out is a transaction of another database; and one of this database without a lock of the
-- kinds that writers of these relations, their partitions or heirs take. Such a lock is held until
-- its transaction is visible (xact.c, CommitTransaction: ProcArrayEndTransaction comes before
-- ResourceOwnerRelease), also from PREPARE to COMMIT PREPARED; ROLLBACK TO gives it back only
-- together with the writes. What is not found, in doubt, is not left out: an id has its lock a
-- moment after it is assigned. A lock that moves in pg_locks, from the fast path to the table, is
-- found in one of them: they are read in that order (lock.c, GetLockStatusData).
-- A relation that only its own transaction sees was made by it, and can become one of these only if
-- the name of one of these is free; to swap, rename or attach it takes a lock on one of these.
with recursive asked as (
  select number, number::text::xid as id
    from unnest($1::bigint[]) as asked (number)
), wanted as (
  select c.oid
    from unnest($2::text[], $3::text[]) as wanted (schema, name)
    left join pg_namespace n on n.nspname = wanted.schema
    left join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
   union all
  select further.oid from unnest($4::oid[]) as further (oid)
), family as (
  select wanted.oid from wanted where wanted.oid is not null
   union
  select i.inhrelid from family f join pg_inherits i on i.inhparent = f.oid
), held as materialized (
  select locktype, database, relation, transactionid, virtualtransaction, pid, mode
    from pg_locks
   where granted and locktype in ('relation', 'transactionid')
), writes as (
  select h.virtualtransaction, h.pid
    from held h
    join pg_database d on d.oid = h.database and d.datname = current_database()
   where h.locktype = 'relation'
     and h.mode not in ('AccessShareLock', 'RowShareLock', 'SIReadLock')
     and (h.relation in (select family.oid from family)
          or exists (select from wanted where wanted.oid is null)
             and not exists (select from pg_class c where c.oid = h.relation))
)
select distinct on (asked.number) asked.number, h.pid, p.gid
  from asked
  left join held h on h.locktype = 'transactionid' and h.mode = 'ExclusiveLock'
                  and h.transactionid = asked.id
  left join pg_prepared_xacts p on p.transaction = asked.id
  left join pg_stat_activity a on a.pid = h.pid
  left join pg_database d on d.oid = a.datid or d.datname = p.database
 where d.datname is null
    or d.datname = current_database()
       and ($5 or h.transactionid is null
            or exists (select
                         from writes w
                        where w.virtualtransaction = h.virtualtransaction
                          and w.pid is not distinct from h.pid))
 order by asked.number, p.gid
