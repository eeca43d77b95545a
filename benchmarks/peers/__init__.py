"""What users would pick instead, run in the same harness against the same sink."""
