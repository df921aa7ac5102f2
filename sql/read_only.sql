-- A session for lookups: it cannot write, and no statement holds it for long. Values are printed as
-- the session that streams prints them (sql/session.sql).
-- Privileges: none. Versions: 14 and later.
set default_transaction_read_only = on;
set statement_timeout = '3s'
