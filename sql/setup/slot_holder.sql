-- Who has the slot that is to be dropped, and whether it is of the kind of walsweep's and of this
-- database; nothing here tells whose it is.
-- Privileges: none. Versions: 14 and later. $1 is the slot's name. No row: there is no such slot.
select active_pid,
       (select application_name from pg_stat_activity where pid = active_pid),
       coalesce(plugin = 'pgoutput' and database = current_database() and not temporary, false),
       coalesce(case when temporary then 'a temporary slot of ' || database end,
                'of database `' || database || '` with plugin `' || plugin || '`',
                'a physical slot')
  from pg_replication_slots
 where slot_name = $1
