-- The query of a lookup as the body of a function, so that sql/lookup_reads.sql finds what it
-- depends on. Privileges: TEMPORARY on the database. Versions: 14 and later.
-- The transaction is always rolled back.
start transaction read write;
set local statement_timeout = '3s';
create function pg_temp.walsweep_lookup({params}) returns setof record language sql begin atomic
{query}
;
end
