-- Whether there is a publication of the name $1.
-- Privileges: none. Versions: 14 and later.
select exists (select from pg_publication where pubname = $1)
