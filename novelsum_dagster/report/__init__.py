"""The report of a selection: tables, plots and the data card."""
