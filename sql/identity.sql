-- Which server an ordinary connection reached, to be held against IDENTIFY_SYSTEM.
-- Privileges: none (pg_control_system is open to all by default). Versions: 14 and later.
-- The fifth column changes when the server starts after anything but a clean shutdown, and stays
-- over a clean one: crash recovery throws the cumulative statistics away (xlog.c, StartupXLOG),
-- also when only one backend crashed. A reset by hand changes it, too, and costs a sweep. Of the
-- views with such a time it is the one that people have least reason to reset.
-- The timeline stands in the name of the file that is being written; a standby writes none.
select pg_is_in_recovery(),
       (select system_identifier::text from pg_control_system()),
       case when pg_is_in_recovery() then null
            else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end,
       (select setting::bigint from pg_settings where name = 'wal_sender_timeout'),
       coalesce((select to_char(stats_reset at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                   from pg_stat_archiver), 'never'),
       current_setting('server_version_num')::int
