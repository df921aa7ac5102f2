-- Ends the process that served walsweep's last session and still has the slot: that session ended,
-- and the server has not noticed.
-- Privileges: none, for processes of one's own role; null for another role's, which is left alone.
-- Versions: 14 and later. $1 is the slot's name, $2 the process, $3 when it began, as sql/slot.sql
-- tells it: another process may have the number by now. Where that is not known, it is left alone.
-- No row: it does not have the slot.
select case when holder.usename = current_user
             and extract(epoch from holder.backend_start)::text = $3
            then pg_catalog.pg_terminate_backend(holder.pid) end
  from pg_catalog.pg_replication_slots s
  join pg_catalog.pg_stat_activity holder on holder.pid = s.active_pid
 where s.slot_name = $1
   and s.active_pid = $2
   and extract(epoch from holder.backend_start)::text is not distinct from $3
