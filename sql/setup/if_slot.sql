-- Around the statement that claims a slot: it is run only in the session that has made the slot,
-- which is still there. One of the same name may be another program's.
-- Privileges: those of the statement. Versions: 14 to 18. It stands in a block of PL/pgSQL.
if coalesce(pg_catalog.current_setting('{made}', true), '') operator(pg_catalog.<>) {slot}
   or not exists (
     select from pg_catalog.pg_replication_slots s
      where s.slot_name operator(pg_catalog.=) {slot}
        and s.database operator(pg_catalog.=) pg_catalog.current_database()) then
  raise sqlstate 'WS004' using
    message = 'this session has not made the slot, which may be another program''s';
end if;
{statement}
