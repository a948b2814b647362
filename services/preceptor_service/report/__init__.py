"""The report: one page about what a run selected and whether that helped."""
