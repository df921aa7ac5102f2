-- The operations that the publication publishes.
-- Privileges: owner of the publication. Versions: 14 to 18.
alter publication {publication} set (publish = {operations})
