-- Whether commits wait for a standby that is there. Privileges: pg_monitor. Versions: 14 and later.
select count(*) > 0 from pg_stat_replication where sync_state = 'sync'
