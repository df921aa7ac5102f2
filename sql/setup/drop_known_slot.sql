-- Removes the slot, and with it the position, if it is of this database and of walsweep's kind, and
-- its confirmed_flush_lsn is what it was, {confirmed}: one that somebody made anew stays.
-- Privileges: REPLICATION. Versions: 14 to 18. It locks no table.
-- It stays on one line: a semicolon ends a line only where a statement ends.
do {quote}
begin
  if not exists (
       select from pg_catalog.pg_replication_slots s
        where s.slot_name operator(pg_catalog.=) {slot}
          and s.database operator(pg_catalog.=) pg_catalog.current_database()
          and s.plugin operator(pg_catalog.=) 'pgoutput' and not s.temporary
          and coalesce(s.confirmed_flush_lsn, '0/0') operator(pg_catalog.=) {confirmed}) then
    raise sqlstate 'WS002' using
      message = 'the slot is not the one that was looked at: print this SQL again';
  end if;
  perform pg_catalog.pg_drop_replication_slot({slot});
end
{quote}
