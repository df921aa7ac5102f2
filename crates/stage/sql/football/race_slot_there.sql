-- Whether somebody reads the slot. Privileges: none. Versions: 14 and later.
select count(*) > 0 from pg_replication_slots where slot_name = $1 and active
