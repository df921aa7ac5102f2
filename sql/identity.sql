-- Which server an ordinary connection reached, to be held against IDENTIFY_SYSTEM.
-- Privileges: none (pg_control_system is open to all by default). Versions: 14 and later.
-- The timeline stands in the name of the file that is being written; a standby writes none.
select pg_is_in_recovery(),
       (select system_identifier::text from pg_control_system()),
       case when pg_is_in_recovery() then null
            else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end,
       (select setting::bigint from pg_settings where name = 'wal_sender_timeout')
