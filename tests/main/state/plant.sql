-- Puts into a schema what whoever may create there would put, to run as somebody else: an overload
-- of each function, operator, type and relation that is named, for many types of arguments.
-- Privileges: superuser. Versions: 14 to 18. $1 is the schema; $2, of functions, their names, $3 the
-- numbers of their arguments; $4 operators, $5 types, $6 relations.
-- The parser prefers an exact match in whatever schema of the path over one with conversions, and
-- of two exact ones that of the earlier schema. All fail when called, and say as whom.
create or replace function pg_temp.plant(
  target text, functions text[], counts int[], operators text[], types text[], relations text[]
) returns int language plpgsql as $plant$
declare
  pool constant text[] := array['text', 'name', '"char"', 'oid', 'xid', 'integer', 'bigint',
    'boolean', 'pg_lsn', 'jsonb', 'interval', 'text[]', 'oid[]'];
  short constant text[] := array['text', 'name', 'oid', 'xid', 'integer', 'boolean'];
  body constant text := $body$language plpgsql as 'begin
    raise exception ''PLANTED: a function of another role ran as %'', current_user; end'$body$;
  planted int := 0;
  one record;
  signature text;
begin
  perform set_config('check_function_bodies', 'off', true);
  execute format('create function %I.planted() returns bool %s', target, body);
  for one in
    select distinct wanted.name, wanted.count
      from unnest(functions, counts) as wanted (name, count)
     where exists (select from pg_proc p where p.proname = wanted.name
                      and p.pronamespace = 'pg_catalog'::regnamespace)
  loop
    for signature in
      select '' where one.count = 0
      union select t from unnest(pool) t where one.count = 1
      union select concat_ws(', ', a, b) from unnest(pool) a, unnest(pool) b where one.count = 2
      union select concat_ws(', ', a, b, c) from unnest(short) a, unnest(short) b, unnest(short) c
       where one.count = 3
      union select 'text, ' || array_to_string(array_fill(t, array[one.count - 1]), ', ')
              from unnest(pool) t where one.count > 3
      -- And what is in the catalog already, for a path in which that comes later.
      union select oidvectortypes(p.proargtypes)
              from pg_proc p
             where p.proname = one.name and p.pronamespace = 'pg_catalog'::regnamespace
               and p.prokind = 'f' and p.provariadic = 0 and p.pronargs = one.count
               and not exists (select from unnest(p.proargtypes) u
                                 join pg_type t on t.oid = u where t.typtype = 'p')
    loop
      execute format('create function %I.%I(%s) returns %s %s', target, one.name, signature,
                     coalesce((select min(p.prorettype::regtype::text) from pg_proc p
                                where p.proname = one.name and not p.proretset
                                  and p.pronamespace = 'pg_catalog'::regnamespace
                                  and exists (select from pg_type t
                                               where t.oid = p.prorettype and t.typtype <> 'p')),
                              'text'), body);
      planted := planted + 1;
    end loop;
  end loop;
  for one in
    select o.name, l, r, coalesce((select min(p.oprresult::regtype::text) from pg_operator p
                                     where p.oprname = o.name and p.oprleft = l::regtype
                                       and p.oprright = r::regtype),
                                  (select min(t.oid::regtype::text)
                                     from pg_operator p join pg_type t on t.oid = p.oprresult
                                    where p.oprname = o.name and t.typtype <> 'p'), 'bool') as result,
           row_number() over () as number
      from unnest(operators) as o (name), unnest(pool) l, unnest(pool) r
     where exists (select from pg_operator p where p.oprname = o.name)
  loop
    execute format('create function %I.%I(%s, %s) returns %s %s',
                   target, 'operator_' || one.number, one.l, one.r, one.result, body);
    execute format('create operator %I.%s (leftarg = %s, rightarg = %s, function = %I.%I)',
                   target, one.name, one.l, one.r, target, 'operator_' || one.number);
    planted := planted + 1;
  end loop;
  for one in select t as name from unnest(types) t where to_regtype('pg_catalog.' || t) is not null
  loop
    execute format('create domain %I.%I as pg_catalog.text check (%1$I.planted())',
                   target, one.name);
    planted := planted + 1;
  end loop;
  for one in select t as name from unnest(relations) t
              where to_regclass('pg_catalog.' || t) is not null
  loop
    execute format('create view %I.%I as select 1 as planted where %1$I.planted()',
                   target, one.name);
    planted := planted + 1;
  end loop;
  execute format('grant usage on schema %I to public', target);
  return planted;
end
$plant$
