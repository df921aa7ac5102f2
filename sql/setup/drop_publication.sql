-- Removes the publication.
-- Privileges: owner of the publication. Versions: 14 to 18.
drop publication {publication}
