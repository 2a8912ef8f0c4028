"""report.html: the report, its figures and every answer in one file that opens from disk."""
