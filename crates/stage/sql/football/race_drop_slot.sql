-- Drops a slot that nobody reads any more. Privileges: replication. Versions: 14 and later.
select pg_drop_replication_slot(slot_name) from pg_replication_slots
where slot_name = $1 and not active
