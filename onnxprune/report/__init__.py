"""Reports: their schema, their JSON, their HTML page."""
