-- Closes what is run of the script that walsweep prints: psql's session goes on as it was before.
-- Privileges: none. Versions: 14 to 18.
do $setup$
declare
  setting pg_catalog.text;
begin
  foreach setting in array array['client_encoding', 'search_path', 'default_transaction_isolation',
                                 'synchronous_commit'] loop
    perform pg_catalog.set_config(
      setting, pg_catalog.current_setting(pg_catalog.concat('walsweep.', setting)), false);
  end loop;
end
$setup$
