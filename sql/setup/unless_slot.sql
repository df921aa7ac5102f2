-- Before what `teardown` does to the publication: it is done only while there is no slot of the
-- name. Whoever made one meanwhile, such as a walsweep that was started again, reads with it.
-- Privileges: those of the statement. Versions: 14 to 18. It stands in a block of PL/pgSQL.
if exists (
     select from pg_catalog.pg_replication_slots s
      where s.slot_name operator(pg_catalog.=) {slot}
        and s.database operator(pg_catalog.=) pg_catalog.current_database()) then
  raise sqlstate 'WS002' using
    message = 'there is a slot of walsweep''s name: stop what reads it, and print this SQL again';
end if;
{statement}
