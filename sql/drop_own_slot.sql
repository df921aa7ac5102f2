-- Drops a slot that was shown to be walsweep's, if it is of this database and still stands where it
-- stood then; so one that somebody makes anew in between stays. No row: it is not, and stays.
-- Privileges: REPLICATION. Versions: 14 to 18. It locks no table.
select pg_catalog.pg_drop_replication_slot(slot_name)
  from pg_catalog.pg_replication_slots
 where slot_name = {slot}
   and database = pg_catalog.current_database() and plugin = 'pgoutput' and not temporary
   and coalesce(confirmed_flush_lsn, '0/0') = {confirmed}
