"""What training a teacher and training a student have in common."""
