"""D: batches of rows, their order, and streams."""
