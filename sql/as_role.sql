-- Gives a session that began in walsweep's state (sql/session.sql) the role's own view again, for
-- the query of a lookup: what its names and texts mean is what they mean to the role. In a
-- transaction that is rolled back, it holds until then.
-- Privileges: none. Versions: 14 to 18. Values are printed as the stream prints them all the same;
-- the order of day and month, in which texts are read, is the role's.
reset search_path;
reset standard_conforming_strings;
reset transform_null_equals;
reset array_nulls;
reset quote_all_identifiers;
reset jit;
reset max_parallel_workers_per_gather;
reset datestyle;
set datestyle = 'ISO'
