-- Who has a slot, whether it is of the kind of walsweep's and of this database, and how far it was
-- confirmed; nothing here tells whose it is.
-- Privileges: none. Versions: 14 and later. $1 is the slot's name. No row: there is no such slot.
select active_pid,
       (select application_name from pg_stat_activity where pid = active_pid),
       coalesce(plugin = 'pgoutput' and database = current_database() and not temporary, false),
       coalesce(case when temporary then 'a temporary slot of ' || database end,
                'of database `' || database || '` with plugin `' || plugin || '`',
                'a physical slot'),
       coalesce(confirmed_flush_lsn, '0/0')::text
  from pg_replication_slots
 where slot_name = $1
