-- Takes the lock of walsweep's comments (sql/setup/unless_changed.sql) until the session ends: what
-- `setup` and `teardown` looked at is not changed by another of them before they have changed it.
-- Privileges: none. Versions: 14 to 18, a standby as well. Nobody else waits for it.
do $setup$
begin
  perform pg_catalog.pg_advisory_lock(2002873459, 2003133808);
exception when lock_not_available then
  raise lock_not_available using message = pg_catalog.concat(
    'the lock of walsweep''s comments is taken by ', {holders});
end
$setup$
