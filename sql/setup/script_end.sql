-- Closes what is run of the script that walsweep prints: psql's session goes on as it was before.
-- Privileges: none. Versions: 14 to 18. {settings} are the names of what was changed; nothing is
-- kept of them where somebody runs this part alone, or where the server does not know one.
do $setup$
declare
  setting pg_catalog.text;
begin
  foreach setting in array array[{settings}] loop
    continue when pg_catalog.current_setting(setting, true) is null;
    perform pg_catalog.set_config(
      setting, coalesce(pg_catalog.current_setting(pg_catalog.concat('walsweep.', setting), true),
                        pg_catalog.current_setting(setting)), false);
  end loop;
end
$setup$
