"""What the report is made of: charts, thumbnails, tables, the page. Plain arguments, no torch."""
