-- Whether everything up to a position is confirmed, which means that its keys were removed for
-- good.
-- Privileges: none. Versions: 14 and later.
select coalesce(bool_or(confirmed_flush_lsn >= $1::text::pg_lsn), false)
from pg_replication_slots where slot_name = $2
