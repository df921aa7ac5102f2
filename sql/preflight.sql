-- What the checks before the start look at of the server, read at once, as one JSON text.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. Columns that
-- came with a later version are read through to_jsonb, which gives null where there is none.
-- $1 is the slot.
select jsonb_build_object(
  'backend_pid', pg_backend_pid(),
  'database', current_database(),
  'is_in_recovery', pg_is_in_recovery(),
  -- Of whoever asks.
  'is_superuser', current_setting('is_superuser')::boolean,
  'wal_level', current_setting('wal_level'),
  'version', current_setting('server_version_num')::int,
  'slot_keep_size', (select setting from pg_settings where name = 'max_slot_wal_keep_size'),
  -- Since 18, in seconds; 0 is never.
  'idle_slot_timeout', (select extract(epoch from (setting || unit)::interval)::bigint
                          from pg_settings where name = 'idle_replication_slot_timeout'),
  -- Since 17: standbys that have to have the log before a failover slot is sent it, and do not
  -- stream at the moment.
  'absent_standbys', (
    select coalesce(jsonb_agg(named.slot), '[]')
      from pg_settings setting,
           regexp_split_to_table(setting.setting, '\s*,\s*') as named (slot)
     where setting.name = 'synchronized_standby_slots'
       and named.slot <> ''
       and not exists (select from pg_replication_slots s
                        where s.slot_name = trim(both '" ' from named.slot) and s.active)),
  'synchronous_commit', (select reset_val from pg_settings where name = 'synchronous_commit'),
  -- Roles and databases for which it is off, as far as they concern this database.
  'asynchronous', (
    select coalesce(jsonb_agg(case when r.rolname is null then 'every role'
                                   else 'role `' || r.rolname || '`' end order by r.rolname), '[]')
      from pg_db_role_setting s
      left join pg_roles r on r.oid = s.setrole
     where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
       and exists (select from unnest(s.setconfig) as setting
                    where lower(setting) in ('synchronous_commit=off', 'synchronous_commit=false',
                                             'synchronous_commit=no', 'synchronous_commit=0'))),
  -- Since 16; a slot on a standby is created sooner with it.
  'may_log_snapshot', (select has_function_privilege(p.oid, 'execute')
                         from pg_proc p
                        where p.proname = 'pg_log_standby_snapshot'
                          and p.pronamespace = 'pg_catalog'::regnamespace),
  'slots_max', current_setting('max_replication_slots')::int,
  'slots_used', (select count(*) from pg_replication_slots),
  'senders_max', current_setting('max_wal_senders')::int,
  'senders_used', (select count(*) from pg_stat_replication),
  -- The administrators' role by which a managed service is known.
  'service', (select min(rolname) from pg_roles
               where rolname in ('rds_superuser', 'cloudsqlsuperuser', 'alloydbsuperuser',
                                 'azure_pg_admin', 'neon_superuser')),
  -- Of whatever database: a new slot waits for each.
  'prepared', (select jsonb_build_object(
                        'count', count(*),
                        'seconds', coalesce(extract(epoch from now() - min(p.prepared))::bigint, 0))
                 from pg_prepared_xacts p),
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
