-- Lets the names of a session's queries mean what they meant when they were checked.
-- Privileges: none. Versions: 14 and later. $1 is the search_path of the session that checked.
-- Every name of ours is qualified: the session has the role's own view (sql/as_role.sql).
select pg_catalog.set_config('search_path', $1::pg_catalog.text, false)
