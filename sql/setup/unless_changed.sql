-- Around a statement that changes, or drops with the publication, what its comment remembers: it is
-- run only if the comment still is as it was read, or as it is to become; else whatever somebody
-- else wrote there meanwhile would be forgotten.
-- Privileges: those of the statement. Versions: 14 to 18. {standing} are SHA-256 of such comments;
-- {otherwise} is what is done over any other.
-- The lock is of this database, and ends with the transaction. Its two numbers, "wals" and "weep"
-- in ASCII, are walsweep's own; who runs the same statement waits for it, nobody else. A session
-- that reads and writes without it would still be overtaken between the two. Any role may hold it,
-- so it is waited for no longer than {timeout}, and whoever has it is named; the names of sessions
-- are for all to see. The comment is read by a statement that begins with the lock: with one
-- snapshot for the whole transaction it would be read as it was before.
-- It stays on one line: a semicolon ends a line only where a statement ends.
do {quote}
begin
  if pg_catalog.current_setting('transaction_isolation')
     operator(pg_catalog.=) any (array['repeatable read', 'serializable']) then
    raise sqlstate 'WS003' using
      message = 'this has to be run in a transaction that is read committed',
      hint = 'begin isolation level read committed; or: set default_transaction_isolation';
  end if;
  perform pg_catalog.set_config('lock_timeout', '{timeout}', true);
  begin
    perform pg_catalog.pg_advisory_xact_lock(2002873459, 2003133808);
  exception when lock_not_available then
    raise lock_not_available using message = pg_catalog.concat(
      'the lock of walsweep''s comments is taken by ', {holders});
  end;
  if (select pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(coalesce(
               pg_catalog.obj_description(p.oid, 'pg_publication'), ''), 'UTF8')), 'hex')
        from pg_catalog.pg_publication p
       where p.pubname operator(pg_catalog.=) {name})
     operator(pg_catalog.<>) all (array[{standing}]) then
    {otherwise};
  else
    {statement};
  end if;
end
{quote}
