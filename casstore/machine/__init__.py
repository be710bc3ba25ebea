"""What belongs to one machine and its user: folders, names of remotes, what is known of local files."""
