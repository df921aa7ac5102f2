-- Removes the event trigger of refreshed views, and its function; one transaction.
-- Privileges: owner of the event trigger. Versions: 14 to 18.
drop event trigger if exists {trigger};
drop function if exists public.{trigger}()
