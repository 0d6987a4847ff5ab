"""A trained student in use: features of any images, and how alike two of them are."""
