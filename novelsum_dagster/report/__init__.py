"""What people look at: the table of sets, and plots."""
