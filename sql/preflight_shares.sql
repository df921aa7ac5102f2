-- How the values of some columns are spread, as far as the statistics know: for what a row filter
-- would spare. Privileges: those of pg_stats, without which it gives nothing. Versions: 15 to 18.
-- $1, $2 and $3 are schemas, tables and columns. Rows: these, the part of the rows that is NULL,
-- the most common values, the part of the rows that each of them has.
select s.schemaname::text, s.tablename::text, s.attname::text, s.null_frac,
       coalesce(s.most_common_vals::text::text[], '{}'), coalesce(s.most_common_freqs, '{}')
  from unnest($1::text[], $2::text[], $3::text[]) as wanted (schema, name, column_name)
  join pg_stats s on s.schemaname = wanted.schema
                 and s.tablename = wanted.name
                 and s.attname = wanted.column_name
 where not s.inherited
