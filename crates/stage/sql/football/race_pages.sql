-- The matches whose pages are raced for, and what each page shows: the season's last but one. The
-- acts of the demonstration are about earlier ones.
-- Privileges: select on the tables of schema.sql. Versions: 14 and later.
select id, kickoff::text from matches
where id < (select max(id) from matches) order by id desc limit $1
