-- Ends the process that served walsweep's last session and still has the slot: that session ended,
-- and the server has not noticed.
-- Privileges: none, for processes of one's own role; null for another role's, which is left alone.
-- Versions: 14 and later. $1 is the slot's name, $2 the process. No row: it does not have the slot.
select case when holder.usename = current_user then pg_terminate_backend(holder.pid) end
  from pg_replication_slots s
  join pg_stat_activity holder on holder.pid = s.active_pid
 where s.slot_name = $1
   and s.active_pid = $2
