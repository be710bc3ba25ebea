"""A store elsewhere through which machines share what they cached, and going on when it fails."""
