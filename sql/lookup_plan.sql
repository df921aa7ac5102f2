-- Prepares the query of a lookup for a plan that does without reading whole tables, wherever there
-- is an index to read instead, and that does not depend on values. Privileges: whatever the query
-- needs. Versions: 14 and later.
-- It runs within sql/lookup_trial.sql, which is rolled back, with the role's own view
-- (sql/as_role.sql); the prepared statement stays, and is dropped by its name.
set local enable_seqscan = off;
set local plan_cache_mode = force_generic_plan;
prepare {name} as
{query}
