"""From outcomes and quality to the figures of a report, and the report."""
