"""What `compare` computes and shows: runs, configurations, intervals, tables, charts, the page."""
