"""The benchmarks' cases, one file for a group of rows."""
