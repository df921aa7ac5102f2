-- A transaction id later than every one assigned so far.
-- Privileges: none. Versions: 14 and later (pg_current_xact_id since 13). Assigns one id.
-- A snapshot's xmax would not do: it is one more than the latest id that ended, and a transaction
-- with a later id may be committed and not yet visible.
begin read write; select pg_current_xact_id()::text; commit
