-- The query of a lookup as the body of a function, so that sql/lookup_reads.sql finds what it
-- depends on. Privileges: TEMPORARY on the database. Versions: 14 and later.
-- In the transaction of sql/lookup_analysis.sql, and with the role's own view (sql/as_role.sql).
create function pg_temp.walsweep_lookup({params}) returns setof record language sql begin atomic
{query}
;
end
