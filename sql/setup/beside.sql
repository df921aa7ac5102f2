-- Whether another walsweep may log in with a role: the comments on all other publications of this
-- database, and who is logged in so, but for commands.
-- Privileges: none. Versions: 14 to 18. $1 is the name of walsweep's publication, $2 the role. It
-- locks no table.
select array(select obj_description(oid, 'pg_publication') from pg_publication
              where pubname <> $1 and obj_description(oid, 'pg_publication') is not null),
       exists (select from pg_stat_activity
                where usename = $2 and application_name like 'walsweep %'
                  and application_name <> 'walsweep command')
