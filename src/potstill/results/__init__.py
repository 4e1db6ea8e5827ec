"""What a run found out: outcome, verdicts, and what the report tells of each task."""
