"""Run an arm over a suite, judge the answers, keep every record, and count honestly."""
