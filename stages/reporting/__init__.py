"""The report's charts, thumbnails, tables and page. Plain arguments, no torch."""
