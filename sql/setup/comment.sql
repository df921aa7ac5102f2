-- Tells whose the publication is, and what `setup` did for it.
-- Privileges: owner of the publication. Versions: 14 to 18.
comment on publication {publication} is {comment}
