-- The query of a lookup as the body of a function, so that sql/lookup_reads.sql finds what it
-- depends on. Privileges: TEMPORARY on the database. Versions: 14 and later.
-- It runs within sql/lookup_trial.sql, which is always rolled back, with the role's own view
-- (sql/as_role.sql).
create function pg_temp.walsweep_lookup({params}) returns setof record language sql begin atomic
{query}
;
end
