-- Plans the questions of this transaction about the catalog for very many tables: none is asked of
-- another for each of them, nothing is compiled for one answer, and no process of the server is
-- taken from the application's queries to help. The server guesses that a list of names finds one
-- table, and then a thousand take it seconds, ten thousand minutes.
-- With few tables the server looks each up, be the catalog as large as it may.
-- Privileges: none. Versions: 14 to 18. $1 is how many tables are asked about; their partitions are
-- not known before, so that all that there are count.
select set_config('jit', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true),
       case when $1::bigint > 100 or (select count(*) from pg_inherits) > 500
            then set_config('enable_nestloop', 'off', true) end
