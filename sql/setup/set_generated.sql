-- Lets the publication have stored generated columns.
-- Privileges: owner of the publication. Versions: 18.
alter publication {publication} set (publish_generated_columns = stored)
