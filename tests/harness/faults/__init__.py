"""Commands of the pipeline that are killed, or find the disk full, at each of their writes."""
