"""Running a pass: attempts, folders, one run at a time for each key."""
