-- Around each transaction of the script that walsweep prints: no statement waits longer than
-- {timeout} for a lock, for whatever comes after it waits behind it; and it is tried again.
-- Privileges: none. Versions: 14 to 18. {tables} are those that it locks.
-- What has failed holds no lock while it pauses. The names of sessions are for all to see. Where
-- no table is locked, the error itself says who has the lock. What is done keeps its lock until the
-- transaction ends: so it has to be one of its own, and waits for no standby when it commits.
do {quote}
begin
  if pg_catalog.transaction_timestamp()
     operator(pg_catalog.<>) pg_catalog.statement_timestamp() then
    raise sqlstate 'WS005' using
      message = 'this has to be run outside a transaction block',
      hint = 'psql without -1, and with AUTOCOMMIT on: else each table stays locked while the next '
             'one is waited for';
  end if;
  set local lock_timeout = '{timeout}';
  set local synchronous_commit = 'local';
  for attempt in 1..{attempts} loop
    begin
      {sql};
      return;
    exception when lock_not_available then
      raise notice 'waiting: %', (
        select coalesce(
                 string_agg(distinct format('Postgres process %s (%s)', l.pid, a.application_name),
                            ', '),
                 sqlerrm)
          from pg_catalog.pg_locks l
          left join pg_catalog.pg_stat_activity a on a.pid = l.pid
         where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid()
           and l.relation = any (select to_regclass(name) from unnest({tables}::text[]) as name));
    end;
    perform pg_sleep({pause});
  end loop;
  raise lock_not_available using message = 'the lock was not to be had: run the script again';
end
{quote}
