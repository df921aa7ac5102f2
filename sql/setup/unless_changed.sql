-- Around a statement that changes, or drops with the publication, what its comment remembers: it is
-- run only if the comment still is as it was read, or as it is to become; else whatever somebody
-- else wrote there meanwhile would be forgotten.
-- Privileges: those of the statement. Versions: 14 to 18. {standing} are SHA-256 of such comments.
-- The lock is of this database, and ends with the transaction. Its two numbers, "wals" and "weep"
-- in ASCII, are walsweep's own; who runs the same statement waits for it, nobody else. A session
-- that reads and writes without it would still be overtaken between the two.
-- It stays on one line: a semicolon ends a line only where a statement ends.
do {quote}
begin
  perform pg_catalog.pg_advisory_xact_lock(2002873459, 2003133808);
  if (select pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(coalesce(
               pg_catalog.obj_description(p.oid, 'pg_publication'), ''), 'UTF8')), 'hex')
        from pg_catalog.pg_publication p
       where p.pubname operator(pg_catalog.=) {name})
     operator(pg_catalog.<>) all (array[{standing}]) then
    raise sqlstate 'WS001' using
      message = 'the comment on the publication changed meanwhile: print this SQL again';
  end if;
  {statement};
end
{quote}
