"""report.html: all that is known about a run, on one page that needs nothing else."""
