-- A session for lookups: it cannot write, and no statement holds it for long. Values are printed as
-- the session that streams prints them (sql/session.sql).
-- Privileges: none. Versions: 14 and later.
-- A statement that waits for a lock ends before one that is slow would, so that it is told apart.
set default_transaction_read_only = on;
set statement_timeout = '3s';
set lock_timeout = '2s'
