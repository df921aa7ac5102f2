-- A session for lookups: it cannot write, no statement holds it for long, and it prints values as
-- the session that streams does (src/capture/login.rs), whatever the role's settings are.
-- Privileges: none. Versions: 14 and later.
-- A statement that waits for a lock ends before one that is slow would, so that it is told apart.
set default_transaction_read_only = on;
set statement_timeout = '3s';
set lock_timeout = '2s';
set datestyle = 'ISO';
set intervalstyle = 'postgres';
set extra_float_digits = 3;
set timezone = 'UTC';
set bytea_output = 'hex'
