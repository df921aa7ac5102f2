-- Which backend answers, of which version: the first question of the checks before the start.
-- Privileges: none. Versions: 10 and later, so that an older server can be told that it is too old.
select pg_backend_pid(), current_setting('server_version_num')::int
