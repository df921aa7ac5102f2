-- The latest sign of life of whoever streams from a slot: a text that is another one each time.
-- No row: nobody has it. Null in its place: nothing may be seen, or it does not stream yet, such as
-- while the slot is made, which may rightly take hours.
-- Privileges: none. With those of pg_read_all_stats the sign is when the client says that it
-- answered last, which a walsweep does every ten seconds. That is the clock of its machine, so
-- that only a change says something. Without them it is when a session of that name ($2) and of
-- one's own role asked something last, which a walsweep at work does every five seconds.
-- Versions: 14 and later. $1 is the slot's name, $3 the name of a walsweep's stream. Takes no lock
-- but, for a moment, the light ones of the slots, and no transaction id.
select holder.pid,
       extract(epoch from holder.backend_start)::text,
       sender.state is not null,
       case when sender.state in ('catchup', 'streaming')
            then coalesce(extract(epoch from sender.reply_time)::text, '')
            when sender.state is null
             and holder.usename = current_user
             and holder.application_name = $3
             and holder.query like 'START_REPLICATION %'
            then (select coalesce(max(extract(epoch from asks.state_change))::text, '')
                    from pg_catalog.pg_stat_activity asks
                   where asks.datname = current_database()
                     and asks.usename = current_user
                     and asks.application_name = $2
                     and asks.pid <> pg_backend_pid()) end
  from pg_catalog.pg_replication_slots s
  join pg_catalog.pg_stat_activity holder on holder.pid = s.active_pid
  left join pg_catalog.pg_stat_replication sender on sender.pid = s.active_pid
 where s.slot_name = $1
