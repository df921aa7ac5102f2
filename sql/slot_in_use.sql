-- Whether a process streams from a slot that still can be streamed: what a stand-in asks again and
-- again. No row: there is no such slot.
-- Privileges: none. Versions: 14 and later. $1 is the slot's name. Takes no lock but, for a moment,
-- the light ones of the slots, and no transaction id.
select active_pid is not null and wal_status is distinct from 'lost'
  from pg_replication_slots
 where slot_name = $1
