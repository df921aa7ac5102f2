-- Around the statement that claims a slot: it is run only once the slot is there.
-- Privileges: those of the statement. Versions: 14 to 18. It stands in a block of PL/pgSQL.
if not exists (
     select from pg_catalog.pg_replication_slots s
      where s.slot_name operator(pg_catalog.=) {slot}
        and s.database operator(pg_catalog.=) pg_catalog.current_database()) then
  raise sqlstate 'WS004' using message = 'there is no such slot in this database: make it first';
end if;
{statement}
