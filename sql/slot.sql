-- The state of one replication slot and what it keeps on the disk of the server that it is on.
-- Privileges: none. Versions: 14 and later. Columns that came with a later version are read
-- through to_jsonb, which gives null where there is none.
-- $1 is the slot's name. No row: there is no such slot.
-- The log ends, on a standby, where the last of it was received; pg_current_wal_lsn() is an error
-- there. Where the server has replayed to is null on a primary. The address of whoever streams is
-- null for a socket, and where it is another role's session, as is when it began.
-- Before 17 no reason is told for a slot that recovery took away, only that it was (16).
select confirmed_flush_lsn::text,
       wal_status,
       active_pid,
       safe_wal_size,
       pg_wal_lsn_diff(here.wal_end, confirmed_flush_lsn)::bigint,
       pg_wal_lsn_diff(here.wal_end, restart_lsn)::bigint,
       holder.application_name,
       coalesce(to_jsonb(s) ->> 'invalidation_reason',
                case when (to_jsonb(s) ->> 'conflicting')::boolean then 'conflict' end),
       (to_jsonb(s) ->> 'failover')::boolean,
       here.replayed::text,
       host(holder.client_addr),
       extract(epoch from holder.backend_start)::text
  from pg_replication_slots s
  left join pg_stat_activity holder on holder.pid = s.active_pid
 cross join (select case when pg_is_in_recovery()
                         then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                         else pg_current_wal_lsn() end as wal_end,
                    case when pg_is_in_recovery()
                         then coalesce(pg_last_wal_replay_lsn(), '0/0') end as replayed) here
 where slot_name = $1
