-- Removes the event trigger of refreshed views, and its function.
-- Privileges: owner of the event trigger. Versions: 14 to 18.
begin;
drop event trigger {trigger};
drop function public.{trigger}();
commit
