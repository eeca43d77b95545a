"""What a door accepts: every check of a submission and what it becomes. Pure: time and ids are given."""
