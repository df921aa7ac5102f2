-- Lets the names of a session's queries mean what they meant when they were checked.
-- Privileges: none. Versions: 14 and later. $1 is the search_path of the session that checked.
select set_config('search_path', $1, false)
