"""Another hub, of which a server is a mirror: what it says, what is on its way from it, and how that arrives."""
