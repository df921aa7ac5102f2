-- The state of one replication slot and what it keeps on the server's disk.
-- Privileges: none. Versions: 14 and later. Columns that came with a later version are read
-- through to_jsonb, which gives null where there is none.
-- $1 is the slot's name. No row: there is no such slot.
-- On a standby pg_current_wal_lsn() is an error; the caller has made sure that this is none.
select confirmed_flush_lsn::text,
       wal_status,
       active_pid,
       safe_wal_size,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
       (select application_name from pg_stat_activity where pid = active_pid),
       to_jsonb(s) ->> 'invalidation_reason',
       (to_jsonb(s) ->> 'failover')::boolean
  from pg_replication_slots s
 where slot_name = $1
