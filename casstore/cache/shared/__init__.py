"""A store elsewhere through which machines share what they cached: looking there, and going on when it fails."""
