-- What the checks before the start look at on the standby that the slot is on, as one JSON text.
-- Privileges: none. Versions: 16 to 18. Columns that came with a later version are read through
-- to_jsonb, which gives null where there is none.
-- $1 is the slot's name.
select jsonb_build_object(
  'is_in_recovery', pg_is_in_recovery(),
  'wal_level', current_setting('wal_level'),
  'hot_standby_feedback', current_setting('hot_standby_feedback')::boolean,
  'primary_slot_name', (select setting from pg_settings where name = 'primary_slot_name'),
  'slot_keep_size', (select setting from pg_settings where name = 'max_slot_wal_keep_size'),
  -- Since 18, in seconds; 0 is never.
  'idle_slot_timeout', (select extract(epoch from (setting || unit)::interval)::bigint
                          from pg_settings where name = 'idle_replication_slot_timeout'),
  'slots_max', current_setting('max_replication_slots')::int,
  'slots_used', (select count(*) from pg_replication_slots),
  'senders_max', current_setting('max_wal_senders')::int,
  'senders_used', (select count(*) from pg_stat_replication),
  'slot', (select to_jsonb(s) from pg_replication_slots s where s.slot_name = $1),
  -- `kept` is the WAL that it keeps, in bytes; null for one that is lost.
  'slots', (select coalesce(jsonb_agg(jsonb_build_object(
                     'name', s.slot_name, 'active', s.active,
                     'kept', pg_wal_lsn_diff(here.wal_end, s.restart_lsn)::bigint)), '[]')
              from pg_replication_slots s
             cross join (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                                     else pg_current_wal_lsn() end as wal_end) here
             where s.database = current_database())
)::text
