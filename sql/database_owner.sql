-- Who owns a database, $1.
-- Privileges: none. Versions: 14 to 18.
select pg_get_userbyid(datdba)::text from pg_database where datname = $1
