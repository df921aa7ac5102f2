-- Which backend answers. Privileges: none. Versions: 9.0 and later. Asked before the state of the
-- session is known (sql/session.sql), and so qualified.
select pg_catalog.pg_backend_pid()
