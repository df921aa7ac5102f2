-- Who has the slot that is to be dropped, and whether it is one of walsweep's in this database.
-- Privileges: none. Versions: 14 and later. $1 is the slot's name. No row: there is no such slot.
select active_pid,
       (select application_name from pg_stat_activity where pid = active_pid),
       coalesce(plugin = 'pgoutput' and database = current_database(), false),
       coalesce('of database `' || database || '` with plugin `' || plugin || '`',
                'a physical slot')
  from pg_replication_slots
 where slot_name = $1
