-- Removes the slot, and with it the position.
-- Privileges: REPLICATION. Versions: 14 to 18.
select pg_catalog.pg_drop_replication_slot({slot})
