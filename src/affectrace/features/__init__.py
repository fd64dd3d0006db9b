"""From media to feature tables on their own clocks."""
