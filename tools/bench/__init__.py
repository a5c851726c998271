"""Programs that measure, and the figures that they published (results/)."""
