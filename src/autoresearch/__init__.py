"""Autonomous machine-learning research: propose, run, judge, record, settle."""
