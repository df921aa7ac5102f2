-- Whether more than what ends at a position is confirmed, which means that the keys of everything
-- up to it were removed for good. A slot that is new stands at a position without that.
-- Privileges: none. Versions: 14 and later.
select coalesce(bool_or(confirmed_flush_lsn > $1::text::pg_lsn), false)
from pg_replication_slots where slot_name = $2
