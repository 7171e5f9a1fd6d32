"""What q says: draws, summaries, diagnostics, plots, and export."""
