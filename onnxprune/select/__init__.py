"""Selection: which units go."""
